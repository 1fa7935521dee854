# An envelope of the bus, read from its outside: who, which number, for whom, and where the message is.
#
# Only what our own nodes write is read, octet for octet in the order they write it. Everything else
# is the full parser's, so a "no" from here costs time and never a message.

cdef extern from "<string.h>" nogil:
    int memcmp(const void *a, const void *b, size_t size)
    const void *memchr(const void *text, int octet, size_t size)

cdef extern from "Python.h":
    Py_ssize_t PyList_GET_SIZE(list found)

# Whether an octet may be part of a name: letters, digits, hyphen, underscore and colon.
cdef uint8_t[256] _NAME
cdef int _octet
for _octet in b"0123456789:ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_":
    _NAME[_octet] = 1

cdef enum:
    MAX_NAME = 96               # octets of an id or a room's name
    MAX_NODE_NAME = 64          # octets of a node's id, in which there is no colon
    MAX_DIGITS = 16             # of a number: below 2**53 · 10, exact everywhere
    TAIL = 43                   # octets of `,"timestamp":"2026-01-02T03:04:05.123456Z"}`


cdef inline Py_ssize_t _after(
    const uint8_t *text, Py_ssize_t size, Py_ssize_t at, const char *literal, Py_ssize_t length
) noexcept nogil:
    """Where a literal ends that stands at a place; -1 if it does not stand there."""
    if at < 0 or size - at < length or memcmp(text + at, literal, <size_t>length) != 0:
        return -1
    return at + length


cdef inline Py_ssize_t _name_end(const uint8_t *text, Py_ssize_t size, Py_ssize_t at) noexcept nogil:
    """Where a name ends that is followed by a quotation mark; -1 for none or a strange one."""
    cdef Py_ssize_t i = at
    cdef Py_ssize_t most = at + MAX_NAME
    if at < 0:
        return -1
    if most >= size:
        most = size - 1
    # There is always an octet at `most`, which ends the loop at the latest.
    while i < most and _NAME[text[i]]:
        i += 1
    return i if i > at and text[i] == 0x22 else -1


cdef inline str _word(const uint8_t *text, Py_ssize_t start, Py_ssize_t end):
    """Make a string of octets that `_name_end` found to be ASCII."""
    cdef str word = PyUnicode_New(end - start, 127)
    memcpy(PyUnicode_1BYTE_DATA(word), text + start, <size_t>(end - start))
    return word


cdef inline Py_ssize_t _number(
    const uint8_t *text, Py_ssize_t size, Py_ssize_t at, uint64_t *value
) noexcept nogil:
    """Where a number ends that has no leading zero; -1 for anything else."""
    cdef Py_ssize_t i = at
    cdef uint64_t sum = 0
    if at < 0 or at >= size or text[at] < 0x30 or text[at] > 0x39:
        return -1
    while i < size and 0x30 <= text[i] <= 0x39:
        if i - at == MAX_DIGITS:
            return -1
        sum = sum * 10 + (text[i] - 0x30)
        i += 1
    if text[at] == 0x30 and i - at > 1:
        return -1
    value[0] = sum
    return i


cdef inline str _ascii(const uint8_t *text, uint32_t size):
    """Make a string of octets; an empty one if they are not all ASCII."""
    cdef uint32_t i
    for i in range(size):
        if text[i] > 0x7F:
            return ""
    return _word(text, 0, size)


cdef struct Head:
    Py_ssize_t node_end         # the id of the sender begins at NODE_AT
    uint64_t seq
    uint64_t epoch
    int kind                    # of Kind
    Py_ssize_t ident            # where the id of the target begins and ends; equal for none
    Py_ssize_t ident_end
    Py_ssize_t was              # the same for what is to be put back as the user's id
    Py_ssize_t was_end
    int64_t undo                # -1 for none
    int64_t members             # -1 for none
    Py_ssize_t receipt
    Py_ssize_t receipt_end
    Py_ssize_t message
    Py_ssize_t message_end

cdef enum Kind:
    FOR_ALL, FOR_ROOM, FOR_CONNECTION, FOR_USER, FOR_NODES

cdef enum:
    NODE_AT = 14
    IN_ROOMS = 1                # streams of redis_wire: rooms, users, and all from here on
    IN_USERS = 2
    FIRST_SHARD = 4

cdef tuple _KINDS = ("", "room", "to", "user", "word")

cdef bint _read_head(const uint8_t *text, Py_ssize_t size, Head *head) noexcept nogil:
    """Find the parts of an envelope; False if it does not look exactly like what our nodes write."""
    cdef Py_ssize_t at, to
    cdef uint64_t number = 0
    head.message_end = size - TAIL
    at = _after(text, size, 0, b'{"server_id":"', NODE_AT)
    head.node_end = _name_end(text, size, at)
    if head.node_end < 0 or head.node_end - NODE_AT > MAX_NODE_NAME \
            or memchr(text + NODE_AT, 0x3A, <size_t>(head.node_end - NODE_AT)):
        return False
    at = _after(text, size, head.node_end, b'","seq":', 8)
    at = _number(text, size, at, &head.seq)
    at = _after(text, size, at, b',"epoch":', 9)
    at = _number(text, size, at, &head.epoch)
    at = _after(text, size, at, b',"v":1,"', 8)
    if at < 0 or head.message_end <= at:
        return False
    # Keys that may be there, in this order.
    head.ident = head.ident_end = head.was = head.was_end = 0
    head.receipt = head.receipt_end = 0
    head.undo = head.members = -1
    head.kind = FOR_ROOM
    to = _after(text, size, at, b'room":"', 7)
    if to < 0:
        head.kind = FOR_CONNECTION
        to = _after(text, size, at, b'to":"', 5)
    if to < 0:
        head.kind = FOR_USER
        to = _after(text, size, at, b'user":"', 7)
    if to < 0:
        head.kind = FOR_NODES
        to = _after(text, size, at, b'word":"', 7)
    if to < 0:
        head.kind = FOR_ALL
    else:
        head.ident = to
        head.ident_end = at = _name_end(text, size, to)
        at = _after(text, size, at, b'","', 3)
    to = _after(text, size, at, b'was":"', 6)
    if to >= 0:
        head.was = to
        head.was_end = at = _name_end(text, size, to)
        at = _after(text, size, at, b'","', 3)
    else:
        to = _after(text, size, at, b'undo":', 6)
        if to >= 0:
            at = _number(text, size, to, &number)
            head.undo = <int64_t>number
            at = _after(text, size, at, b',"', 2)
    to = _after(text, size, at, b'members":', 9)
    if to >= 0:
        at = _number(text, size, to, &number)
        head.members = <int64_t>number
        at = _after(text, size, at, b',"', 2)
    to = _after(text, size, at, b'receipt":"', 10)
    if to >= 0:
        head.receipt = to
        head.receipt_end = at = _name_end(text, size, to)
        at = _after(text, size, at, b'","', 3)
    head.message = at = _after(text, size, at, b'message":', 9)
    if at < 0 or at >= head.message_end:
        return False
    if _after(text, size, head.message_end, b',"timestamp":"', 14) < 0 \
            or text[size - 2] != 0x22 or text[size - 1] != 0x7D:
        return False
    for to in range(head.message_end + 14, size - 2):
        if not (0x2D <= text[to] <= 0x3A or text[to] == 0x54 or text[to] == 0x5A):
            return False
    return True


cdef tuple _parts(const uint8_t *text, Head *head):
    """What `read_envelope` returns."""
    cdef object restore = None, members = None, receipt = None
    if head.was:
        restore = _word(text, head.was, head.was_end)
    elif head.undo >= 0:
        restore = head.undo
    if head.members >= 0:
        members = head.members
    if head.receipt:
        receipt = _word(text, head.receipt, head.receipt_end)
    return (
        _word(text, NODE_AT, head.node_end), head.seq, head.epoch, _KINDS[head.kind],
        _word(text, head.ident, head.ident_end) if head.ident else "",
        restore, members, receipt, head.message, head.message_end,
    )


def read_envelope(payload: bytes) -> tuple[
    str, int, int, str, str, str | int | None, int | None, str | None, int, int
] | None:
    """Read what our own nodes write around a message, without parsing the message.

    Args:
        payload: of any content.

    Returns:
        None if it does not look exactly like what our nodes write. Else who sent it, its number, its
        epoch, what kind of target it has (`room`, `to`, `user`, `word`, or empty for everybody) and
        which, what is to be put back as the user's id (a text), or taken out (a number), the number
        of members, the receipt, and where in the payload the message begins and ends. That the
        message is JSON, or even balanced, is not checked.
    """
    cdef Head head
    cdef const uint8_t *text = <const uint8_t *>PyBytes_AS_STRING(payload)
    if not _read_head(text, PyBytes_GET_SIZE(payload), &head):
        return None
    return _parts(text, &head)


cdef object _judge(
    const uint8_t *text, Py_ssize_t size, Py_ssize_t at, bytes own, dict records, object rooms,
    frozenset types,
):
    """Sort what came: done with, ready to be delivered, or left to the caller.

    In a cluster most messages are for rooms without a member here, and most others are plain ones
    for a room. Both are judged in this one call: it notes the number if it is the next one, looks
    for the room, and reads through the frame.

    Returns:
        None if it has to be parsed; 0 if this node has sent it; 1 if its number was the next one, and
        was noted, and nobody here is meant by it. (room, frame) if that was so, and the frame is for
        a room with members here and can be passed on as it came. Else what `read_envelope` returns,
        with another value in front: whether the number was noted.
    """
    cdef Head head
    cdef object record
    cdef str room
    cdef list last
    cdef ff_plain plain
    if not _read_head(text, size, &head):
        return None
    size = head.node_end - NODE_AT
    if size == PyBytes_GET_SIZE(own) and memcmp(text + NODE_AT, PyBytes_AS_STRING(own), <size_t>size) == 0:
        return 0
    record = records.get(_word(text, NODE_AT, head.node_end))
    if record is None or <uint64_t>record.epoch != head.epoch:
        return (False, *_parts(text, &head))
    last = record.last
    if at >= PyList_GET_SIZE(last) or <int64_t>last[at] + 1 != <int64_t>head.seq or head.seq == 0:
        return (False, *_parts(text, &head))
    last[at] = head.seq
    if head.receipt == 0:
        if head.kind == FOR_ROOM and (at == IN_ROOMS or at >= FIRST_SHARD):
            room = _word(text, head.ident, head.ident_end)
            if room not in rooms:
                return 1
            size = head.message_end - head.message
            if head.members < 0 and ff_plain_frame(text + head.message, <size_t>size, &plain) \
                    and plain.room.size == <uint32_t>(head.ident_end - head.ident) \
                    and memcmp(text + head.message + plain.room.at, text + head.ident,
                               plain.room.size) == 0 \
                    and _ascii(text + head.message + plain.type.at, plain.type.size) in types:
                return (room, PyBytes_FromStringAndSize(<const char *>text + head.message, size))
        elif head.kind == FOR_USER and (at == IN_USERS or at >= FIRST_SHARD):
            if "user:" + _word(text, head.ident, head.ident_end) not in rooms:
                return 1
    return (True, *_parts(text, &head))


# --- what a link that is subscribed brings -------------------------------------------------------

cdef struct Bulk:
    Py_ssize_t start
    Py_ssize_t end

cdef enum:
    NO_BULK = -1
    NOT_WHOLE = 0
    MAX_BULK_DIGITS = 9         # of a length; Redis has a limit of 512 MB
    MAX_WORD = 512              # octets of a kind of reply, or of a channel, that is waited for


cdef inline Py_ssize_t _bulk(
    const uint8_t *text, Py_ssize_t size, Py_ssize_t at, Bulk *bulk
) noexcept nogil:
    """Where `$n`, line end, n octets, line end is over; NO_BULK, or NOT_WHOLE.

    In the last case, `bulk.end` says where its octets would end, or 0 if that is not known yet.
    """
    cdef Py_ssize_t i = at, length = 0
    bulk.end = 0
    if i >= size:
        return NOT_WHOLE
    if text[i] != 0x24:
        return NO_BULK
    i += 1
    while i < size and 0x30 <= text[i] <= 0x39:
        if i - at > MAX_BULK_DIGITS:
            return NO_BULK
        length = length * 10 + (text[i] - 0x30)
        i += 1
    if i == at + 1 and i < size:
        return NO_BULK
    if size - i < 2:
        return NOT_WHOLE if i == size or text[i] == 0x0D else NO_BULK
    if text[i] != 0x0D or text[i + 1] != 0x0A:
        return NO_BULK
    bulk.start = i + 2
    bulk.end = i + 2 + length
    if size - bulk.end < 2:
        return NOT_WHOLE
    if text[bulk.end] != 0x0D or text[bulk.end + 1] != 0x0A:
        return NO_BULK
    return bulk.end + 2


cdef inline bint _is(const uint8_t *text, Bulk *bulk, const char *word, Py_ssize_t size) noexcept nogil:
    """Whether a string is a word."""
    return bulk.end - bulk.start == size and memcmp(text + bulk.start, word, <size_t>size) == 0


cdef inline bint _is_long(Bulk *bulk) noexcept nogil:
    """Whether a string is longer than any kind of reply, or channel, is."""
    return bulk.end != 0 and bulk.end - bulk.start > MAX_WORD


cdef inline bytes _octets(const uint8_t *text, Bulk *bulk):
    return PyBytes_FromStringAndSize(<const char *>text + bulk.start, bulk.end - bulk.start)


cdef class Sifter:
    """Takes messages out of what came from Redis, as long as nothing else is between them.

    A subscriber hears next to nothing but messages, and most are done with at the place where they
    lie in what was read, without becoming objects. What is not, and what is no message, is given to
    others.

    Args:
        own: the id of this node.
        streams: by channel; what comes through other channels is a reply like any.
        records: of `positions.Positions`, by node.
        types: that a frame for a room may have.
        passed: called with (channel, room, frame) for a frame that can be passed on as it came.
        left: called with (channel, payload, found) for any other message. `found` is None if it has
            to be parsed, the error if `rooms` raised one, else what `read_envelope` returns with
            another value in front: whether the number was the next one, and was noted.

    Attributes:
        rooms: with members here; a user's is `user:` and the id.
        taken: messages of others that were done with here, or passed on.
        unwanted: of these, those that nobody here is meant by.
    """

    cdef bytes _own
    cdef dict _streams
    cdef dict _records
    cdef frozenset _types
    cdef object _passed
    cdef object _left
    cdef bytes _channel         # the latest one, and its stream
    cdef Py_ssize_t _stream
    cdef public object rooms
    cdef readonly int64_t taken
    cdef readonly int64_t unwanted

    def __init__(
        self, *, own: bytes, streams: dict, records: dict, types: frozenset, passed: object,
        left: object,
    ) -> None:
        self._own = own
        self._streams = streams
        self._records = records
        self._types = types
        self._passed = passed
        self._left = left
        self._channel = b""
        self._stream = -1
        self.rooms = ()
        self.taken = self.unwanted = 0

    def feed(self, data: bytes, on_reply: object) -> tuple[int, int]:
        """Take all whole replies off the front that are pushes of three parts.

        Args:
            data: that came.
            on_reply: called with a list of three for each push that is no message of a stream.

        Returns:
            Where it stopped, and how many octets from there on the next push has, 0 if that is not
            known. -1 stands for something else than a push.
        """
        cdef const uint8_t *text = <const uint8_t *>PyBytes_AS_STRING(data)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(data), at = 0, next = 0, number
        cdef Bulk kind, channel, payload
        while True:
            at = next
            number = size - at if size - at < 4 else 4
            channel.start = channel.end = 0
            if memcmp(text + at, <const char *>b"*3\r\n", <size_t>number) != 0:
                return at, -1
            if number < 4:
                return at, 0
            next = _bulk(text, size, at + 4, &kind)
            if next > 0:
                next = _bulk(text, size, next, &channel)
            if next == NOT_WHOLE and (_is_long(&kind) or _is_long(&channel)):
                next = NO_BULK
            if next <= 0:
                return at, next
            number = next
            next = _bulk(text, size, next, &payload)
            if next == NOT_WHOLE:
                return at, payload.end + 2 - at if payload.end else 0
            if next > 0:
                if _is(text, &kind, b"message", 7) or _is(text, &kind, b"smessage", 8):
                    if not _is(text, &channel, PyBytes_AS_STRING(self._channel),
                               PyBytes_GET_SIZE(self._channel)):
                        self._turn_to(_octets(text, &channel))
                    if self._stream >= 0:
                        self._sift(text + payload.start, payload.end - payload.start)
                        continue
                on_reply([_octets(text, &kind), _octets(text, &channel), _octets(text, &payload)])
                continue
            # How many channels are subscribed now; nobody wants to know.
            next = number
            if text[next] != 0x3A:
                return at, -1
            next += 1
            while next < size and 0x30 <= text[next] <= 0x39 and next - number <= MAX_BULK_DIGITS:
                next += 1
            if next == number + 1 and next < size:
                return at, -1
            if size - next < 2:
                return at, 0 if next == size or text[next] == 0x0D else -1
            if text[next] != 0x0D or text[next + 1] != 0x0A:
                return at, -1
            next += 2
            on_reply([_octets(text, &kind), _octets(text, &channel), None])

    def take(self, channel: bytes, payload: bytes) -> None:
        """Take one message of a stream that came another way."""
        self._turn_to(channel)
        self._sift(<const uint8_t *>PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload))

    cdef object _turn_to(self, bytes channel):
        """Note the channel of the next messages."""
        cdef object stream = self._streams.get(channel)
        self._channel = channel
        self._stream = -1 if stream is None else stream

    cdef object _sift(self, const uint8_t *text, Py_ssize_t size):
        """Judge one message, and do what follows from it."""
        cdef object found
        try:
            found = _judge(
                text, size, self._stream, self._own, self._records, self.rooms, self._types
            )
        except Exception as error:
            found = error
        if type(found) is int:
            if found:
                self.taken += 1
                self.unwanted += 1
        elif type(found) is tuple and len(<tuple>found) == 2:
            self.taken += 1
            self._passed(self._channel, (<tuple>found)[0], (<tuple>found)[1])
        else:
            self._left(self._channel, PyBytes_FromStringAndSize(<const char *>text, size), found)
