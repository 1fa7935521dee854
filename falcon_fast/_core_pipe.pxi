# What crosses between the processes of a node: frames as `bus.node_wire` describes them.
#
# Nearly all of them are messages to rooms, and those are written and read here; a process that only
# passes one on sends the octets that came.

cdef extern from "Python.h":
    str PyUnicode_DecodeUTF8(const char *text, Py_ssize_t size, const char *errors)

cdef enum:
    PIPE_HEAD = 5               # octets: the length of a body, and the kind of a frame
    PIPE_ROOM = 9               # the same, and the length of a room's name


cdef inline void _put_length(uint8_t *text, Py_ssize_t length) noexcept nogil:
    """Write a length of four octets, the highest first."""
    text[0] = <uint8_t>(length >> 24)
    text[1] = <uint8_t>(length >> 16)
    text[2] = <uint8_t>(length >> 8)
    text[3] = <uint8_t>length


cdef inline int64_t _get_length(const uint8_t *text) noexcept nogil:
    """Read a length of four octets."""
    return <int64_t>text[0] << 24 | text[1] << 16 | text[2] << 8 | text[3]


def room_frame(kind: int, room: str, message: bytes, max_body: int) -> bytes:
    """Return the frame of a message to a room.

    Args:
        kind: that such frames have.
        room: its name.
        message: for its members.
        max_body: octets that the other end takes in one frame.

    Raises:
        ValueError: it would be larger.
    """
    cdef Py_ssize_t named = 0, size = PyBytes_GET_SIZE(message)
    cdef const char *name = PyUnicode_AsUTF8AndSize(room, &named)  # the string's own, no copy
    cdef Py_ssize_t body = PIPE_ROOM - PIPE_HEAD + named + size
    if body > <Py_ssize_t>max_body:
        raise ValueError(f"a message between processes has {body} octets")
    cdef bytes frame = PyBytes_FromStringAndSize(NULL, PIPE_HEAD + body)
    cdef uint8_t *text = <uint8_t *>PyBytes_AS_STRING(frame)
    _put_length(text, body)
    text[4] = <uint8_t>(<int>kind)
    _put_length(text + PIPE_HEAD, named)
    memcpy(text + PIPE_ROOM, name, <size_t>named)
    memcpy(text + PIPE_ROOM + named, PyBytes_AS_STRING(message), <size_t>size)
    return frame


cdef class Cutter:
    """Takes frames off the front of what came from the other end of a pipe.

    Args:
        room_kind: of frames with a message to a room.
        max_body: octets that a frame's body has at most.
        on_room: called with (room, message, frame) for each of these.
        keeps_frames: False to have None for the frame, which is then not copied.
        on_frame: called with (kind, body) for each other one.

    Attributes:
        is_over: True makes it stop in front of the next frame.
    """

    cdef uint8_t _room_kind
    cdef Py_ssize_t _max_body
    cdef object _on_room
    cdef object _on_frame
    cdef bint _keeps_frames
    cdef public bint is_over

    def __init__(
        self, *, room_kind: int, max_body: int, on_room: object, on_frame: object,
        keeps_frames: bool = True,
    ) -> None:
        self._room_kind = <uint8_t>(<int>room_kind)
        self._max_body = max_body
        self._on_room = on_room
        self._on_frame = on_frame
        self._keeps_frames = keeps_frames
        self.is_over = False

    def feed(self, buffer: bytearray, filled: int) -> tuple[int, int]:
        """Hand over every frame that is whole.

        Args:
            buffer: with what came; nobody changes its size meanwhile.
            filled: how many octets of it are that.

        Returns:
            Where the first frame begins that is not whole, and how many octets it has, as far as
            that is known.

        Raises:
            ValueError: what came is no frame, or one larger than any that is taken.
        """
        cdef const uint8_t[::1] view = buffer  # holds its size
        cdef Py_ssize_t begin = 0, end = filled
        cdef int64_t length, named
        cdef const uint8_t *text
        if end > view.shape[0]:
            raise ValueError(f"a buffer of {view.shape[0]} octets has no {end}")
        while not self.is_over and end - begin >= PIPE_HEAD:
            text = &view[begin]
            length = _get_length(text)
            if length > self._max_body:
                raise ValueError(f"a frame of {length} octets")
            if end - begin - PIPE_HEAD < length:
                return begin, PIPE_HEAD + length
            if text[4] == self._room_kind:
                named = _get_length(text + PIPE_HEAD) if length >= PIPE_ROOM - PIPE_HEAD else length
                if named > length - (PIPE_ROOM - PIPE_HEAD):
                    raise ValueError("a message to a room ends within the room's name")
                self._on_room(
                    PyUnicode_DecodeUTF8(<const char *>text + PIPE_ROOM, <Py_ssize_t>named, NULL),
                    PyBytes_FromStringAndSize(
                        <const char *>text + PIPE_ROOM + named,
                        <Py_ssize_t>(length - (PIPE_ROOM - PIPE_HEAD) - named),
                    ),
                    PyBytes_FromStringAndSize(
                        <const char *>text, <Py_ssize_t>(PIPE_HEAD + length)
                    ) if self._keeps_frames else None,
                )
            else:
                self._on_frame(
                    text[4],
                    PyBytes_FromStringAndSize(
                        <const char *>text + PIPE_HEAD, <Py_ssize_t>length
                    ),
                )
            begin += PIPE_HEAD + <Py_ssize_t>length
        return begin, PIPE_HEAD
