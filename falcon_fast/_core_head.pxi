# How a client comes in: its socket, the head of its request, and the outside of its token.
#
# Only grammar is looked at here, in one pass each; what a request may do is decided in `handshake`.

cdef extern from *:
    object PyErr_SetFromErrno(object kind)

# Whether an octet may stand in a token of HTTP (RFC 9110 section 5.6.2: tchar), and as what when it
# is written in lower case; 0 for what may not.
cdef uint8_t[256] _TCHAR
# Whether an octet may stand in a field value: anything but control characters, a tab excepted.
cdef uint8_t[256] _FIELD_VALUE
# What a character of base64url stands for (RFC 4648 section 5), plus one; 0 for strange ones.
cdef uint8_t[256] _SIXBIT

for _octet in b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz":
    _TCHAR[_octet] = _octet
for _octet in b"ABCDEFGHIJKLMNOPQRSTUVWXYZ":
    _TCHAR[_octet] = _octet | 0x20
for _octet in range(256):
    _FIELD_VALUE[_octet] = _octet == 9 or 0x20 <= _octet <= 0x7e or _octet >= 0x80
for _octet in range(26):
    _SIXBIT[0x41 + _octet] = _octet + 1
    _SIXBIT[0x61 + _octet] = _octet + 27
for _octet in range(10):
    _SIXBIT[0x30 + _octet] = _octet + 53
_SIXBIT[0x2D] = 63
_SIXBIT[0x5F] = 64

cdef extern from "Python.h":
    str PyUnicode_DecodeLatin1(const char *text, Py_ssize_t size, const char *errors)
    bint PyUnicode_IS_ASCII(str text)
    Py_ssize_t PyUnicode_GET_LENGTH(str text)

cdef enum:
    MAX_METHOD = 32             # octets; no registered method has more than 17

cdef enum HeadFault:
    BAD_HEAD = 400
    BAD_HTTP_VERSION = 505


# What came with a connection is copied out of here before the next one is looked at.
cdef uint8_t[READ_SIZE] _arrived


def accept(listener: int) -> tuple[int, str, bytes | None] | None:
    """Accept a connection, and read what has come with it: mostly its whole head.

    Args:
        listener: the descriptor of a listening socket that does not block.

    Returns:
        The descriptor, not blocking; the address of the other end, empty for a Unix socket; and what
        it sent: None for nothing yet, b"" if nothing will come. None if nobody waits.

    Raises:
        OSError: what `accept(2)` or `recv(2)` say; the connection is closed.
    """
    cdef char[64] address
    cdef int fd = ff_accept(listener, address, sizeof(address))
    cdef ssize_t got
    if fd < 0:
        return None if ff_would_block() else PyErr_SetFromErrno(OSError)
    got = ff_recv(fd, _arrived, READ_SIZE)
    if got < 0 and not ff_would_block():
        try:
            return PyErr_SetFromErrno(OSError)
        finally:
            c_close(fd)
    return (
        fd,
        (<bytes>address).decode("ascii"),
        None if got < 0 else PyBytes_FromStringAndSize(<const char *>_arrived, got),
    )


cdef Py_ssize_t _line_end(const uint8_t *text, Py_ssize_t size, Py_ssize_t at) noexcept nogil:
    """Where the CR of the next CRLF is, or -1."""
    cdef const uint8_t *found
    while at < size:
        found = <const uint8_t *>memchr(text + at, 0x0D, <size_t>(size - at))
        if found == NULL:
            return -1
        at = found - text
        if at + 1 < size and text[at + 1] == 0x0A:
            return at
        at += 1
    return -1


def read_head(head: bytes, max_line: int) -> tuple[str, str, dict[str, tuple[str, ...]] | None] | int:
    """Read the request line and the fields of a request head, in the one strict grammar.

    Args:
        head: everything up to and including the first empty line.
        max_line: octets of a field line, without its CRLF.

    Returns:
        The method, the target, and the values of each field by its name in lower case, without the
        white space around them, in the order sent; None for the fields if a line is too long. Or
        the status of the refusal: 400 for the grammar, 505 for another version than 1.1.
    """
    cdef const uint8_t *text = <const uint8_t *>PyBytes_AS_STRING(head)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(head), line_max = max_line
    cdef Py_ssize_t at = 0, end, name_end, method_end, target_end, start, stop
    cdef bint is_long = False
    cdef str name
    cdef dict fields = {}, again = {}
    cdef tuple values
    cdef uint8_t *lower
    # method SP request-target SP HTTP-version (RFC 9112 section 3)
    end = _line_end(text, size, 0)
    if end < 0:
        return BAD_HEAD
    while at < end and at <= MAX_METHOD and _TCHAR[text[at]]:
        at += 1
    method_end = at
    if at == 0 or at > MAX_METHOD or at == end or text[at] != 0x20:
        return BAD_HEAD
    at += 1
    while at < end and 0x21 <= text[at] <= 0x7e:
        at += 1
    target_end = at
    if at == method_end + 1 or end - at != 9 or memcmp(text + at, b" HTTP/", 6) != 0 \
            or not 0x30 <= text[at + 6] <= 0x39 or text[at + 7] != 0x2E \
            or not 0x30 <= text[at + 8] <= 0x39:
        return BAD_HEAD
    if text[at + 6] != 0x31 or text[at + 8] != 0x31:
        return BAD_HTTP_VERSION
    # *( field-name ":" OWS field-value OWS CRLF ) CRLF (RFC 9112 section 5)
    at = end + 2
    while True:
        start = at
        while at < size and _TCHAR[text[at]]:
            at += 1
        if at == start:
            if size - at == 2 and text[at] == 0x0D and text[at + 1] == 0x0A:
                break
            return BAD_HEAD
        name_end = at
        if at == size or text[at] != 0x3A:
            return BAD_HEAD
        at += 1
        while at < size and _FIELD_VALUE[text[at]]:
            at += 1
        stop = at
        if size - at < 2 or text[at] != 0x0D or text[at + 1] != 0x0A:
            return BAD_HEAD
        is_long = is_long or stop - start > line_max
        at += 2
        if is_long:
            continue        # the rest must still be in order
        name = PyUnicode_New(name_end - start, 127)
        lower = <uint8_t *>PyUnicode_1BYTE_DATA(name)
        for end in range(name_end - start):
            lower[end] = _TCHAR[text[start + end]]
        start = name_end + 1
        while start < stop and (text[start] == 0x20 or text[start] == 0x09):
            start += 1
        while stop > start and (text[stop - 1] == 0x20 or text[stop - 1] == 0x09):
            stop -= 1
        values = (PyUnicode_DecodeLatin1(<const char *>text + start, stop - start, NULL),)
        if name not in fields:
            fields[name] = values
        elif name in again:
            (<list>again[name]).append(values[0])
        else:
            again[name] = [values[0]]
    for name in again:
        fields[name] = <tuple>fields[name] + tuple(<list>again[name])
    return (
        _word(text, 0, method_end),
        _word(text, method_end + 1, target_end),
        None if is_long else fields,
    )


def split_token(token: str) -> tuple[str, str, str, str] | None:
    """Take a JSON Web Token in compact form apart (RFC 7515 section 3.1).

    Returns:
        The header, the claims, the signature, and what is signed: the first two with their dot. None
        if there are not three segments in the alphabet of base64url, none of them empty.
    """
    cdef Py_ssize_t size = PyUnicode_GET_LENGTH(token), i, first = 0, second = 0
    cdef const uint8_t *text
    if not PyUnicode_IS_ASCII(token):
        return None
    text = <const uint8_t *>PyUnicode_1BYTE_DATA(token)
    for i in range(size):
        if _SIXBIT[text[i]]:
            continue
        if text[i] != 0x2E or second:
            return None
        if first:
            second = i
        else:
            first = i
        # A dot at the beginning leaves `first` at 0, and the next one is taken for the first.
        if i == 0:
            return None
    if not second or second == first + 1 or second == size - 1:
        return None
    return (
        _word(text, 0, first),
        _word(text, first + 1, second),
        _word(text, second + 1, size),
        _word(text, 0, second),
    )


def from_base64url(segment: str) -> bytes | None:
    """Decode base64url without padding, in its one canonical spelling (RFC 4648 sections 5 and 3.5).

    Returns:
        The octets; None for a character outside the alphabet, a length that no octets have, or bits
        beyond the last octet that are not zero: one text would have several spellings.
    """
    cdef Py_ssize_t size = PyUnicode_GET_LENGTH(segment), i
    cdef const uint8_t *text
    cdef bytes decoded
    cdef uint8_t *to
    cdef uint32_t bits = 0, held = 0
    if not PyUnicode_IS_ASCII(segment) or size % 4 == 1:
        return None
    text = <const uint8_t *>PyUnicode_1BYTE_DATA(segment)
    decoded = PyBytes_FromStringAndSize(NULL, size * 3 // 4)
    to = <uint8_t *>PyBytes_AS_STRING(decoded)
    for i in range(size):
        if not _SIXBIT[text[i]]:
            return None
        bits = (bits << 6) | (_SIXBIT[text[i]] - 1)
        held += 6
        if held >= 8:
            held -= 8
            to[0] = <uint8_t>(bits >> held)
            to += 1
            bits &= (1 << held) - 1
    return None if bits else decoded
