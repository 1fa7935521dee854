# An envelope of the bus, read from its outside: who, which number, for whom, and where the message is.
#
# Only what our own nodes write is read, octet for octet in the order they write it. Everything else
# is the full parser's, so a "no" from here costs time and never a message.

cdef extern from "<string.h>" nogil:
    int memcmp(const void *a, const void *b, size_t size)
    const void *memchr(const void *text, int octet, size_t size)

cdef extern from "Python.h":
    str PyUnicode_New(Py_ssize_t size, Py_UCS4 largest)
    void *PyUnicode_1BYTE_DATA(str text)

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
    cdef const uint8_t *text = <const uint8_t *>PyBytes_AS_STRING(payload)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(payload)
    cdef Py_ssize_t at, to, node_end, message_end = size - TAIL
    cdef uint64_t seq = 0, epoch = 0, number = 0
    cdef str kind = ""
    cdef str ident = ""
    cdef object restore = None, members = None, receipt = None
    at = _after(text, size, 0, b'{"server_id":"', 14)
    node_end = _name_end(text, size, at)
    if node_end - at > MAX_NODE_NAME or memchr(text + 14, 0x3A, <size_t>max(node_end - 14, 0)):
        return None
    at = _after(text, size, node_end, b'","seq":', 8)
    at = _number(text, size, at, &seq)
    at = _after(text, size, at, b',"epoch":', 9)
    at = _number(text, size, at, &epoch)
    at = _after(text, size, at, b',"v":1,"', 8)
    if at < 0 or message_end <= at:
        return None
    # Keys that may be there, in this order.
    to = _after(text, size, at, b'room":"', 7)
    if to >= 0:
        kind = "room"
    else:
        to = _after(text, size, at, b'to":"', 5)
        if to >= 0:
            kind = "to"
        else:
            to = _after(text, size, at, b'user":"', 7)
            if to >= 0:
                kind = "user"
            else:
                to = _after(text, size, at, b'word":"', 7)
                if to >= 0:
                    kind = "word"
    if to >= 0:
        at = _name_end(text, size, to)
        if at < 0:
            return None
        ident = _word(text, to, at)
        at = _after(text, size, at, b'","', 3)
    to = _after(text, size, at, b'was":"', 6)
    if to >= 0:
        at = _name_end(text, size, to)
        if at < 0:
            return None
        restore = _word(text, to, at)
        at = _after(text, size, at, b'","', 3)
    else:
        to = _after(text, size, at, b'undo":', 6)
        if to >= 0:
            at = _number(text, size, to, &number)
            restore = number
            at = _after(text, size, at, b',"', 2)
    to = _after(text, size, at, b'members":', 9)
    if to >= 0:
        at = _number(text, size, to, &number)
        members = number
        at = _after(text, size, at, b',"', 2)
    to = _after(text, size, at, b'receipt":"', 10)
    if to >= 0:
        at = _name_end(text, size, to)
        if at < 0:
            return None
        receipt = _word(text, to, at)
        at = _after(text, size, at, b'","', 3)
    at = _after(text, size, at, b'message":', 9)
    if at < 0 or at >= message_end:
        return None
    if _after(text, size, message_end, b',"timestamp":"', 14) < 0 or text[size - 2] != 0x22 \
            or text[size - 1] != 0x7D:
        return None
    for to in range(message_end + 14, size - 2):
        if not (0x2D <= text[to] <= 0x3A or text[to] == 0x54 or text[to] == 0x5A):
            return None
    return (
        _word(text, 14, node_end), seq, epoch, kind, ident, restore, members, receipt,
        at, message_end,
    )
