# What the program keeps of a connection beside the core's struct: the object that callbacks are given,
# in as few octets as it takes, and the way from a connection's id to it. A fact costs an object of
# fifty octets and more in Python; here ids are 16 octets, and what is seldom asked for is one record.

cdef extern from "Python.h":
    void *PyObject_Malloc(size_t size)
    void PyObject_Free(void *block)
    void PyObject_GC_UnTrack(void *thing)
    bint PyObject_IS_GC(object thing)
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL

cdef enum:
    ID_OCTETS = 16
    ID_TEXT = 36                # characters of an id as RFC 9562 writes it
    LEAST_HEADS = 64            # of `Seats`, a power of two
    MOST_RECORD = 0xffff        # octets

# How a fact begins; what is below is the length of a text. Numbers are little-endian.
cdef enum:
    FACT_TEXT = 250             # a longer text, its length in four octets
    FACT_NONE = 251
    FACT_ID = 252               # a text that is an id: its 16 octets
    FACT_SHORT = 253            # an integer of five octets, not negative: a time, for example
    FACT_LONG = 254             # any other, of eight octets


cdef bint id_read(const uint8_t *text, Py_ssize_t size, uint8_t *octets) noexcept:
    """Read an id in the one form in which it is written: lower case, with four hyphens."""
    cdef Py_ssize_t i, n = 0
    cdef uint8_t digit
    if size != ID_TEXT:
        return False
    for i in range(ID_TEXT):
        digit = text[i]
        if i == 8 or i == 13 or i == 18 or i == 23:
            if digit != c"-":
                return False
            continue
        if c"0" <= digit <= c"9":
            digit -= c"0"
        elif c"a" <= digit <= c"f":
            digit -= c"a" - 10
        else:
            return False
        octets[n >> 1] = digit if n & 1 == 0 else octets[n >> 1] << 4 | digit
        n += 1
    return True


cdef str id_text(const uint8_t *octets):
    cdef str text = PyUnicode_New(ID_TEXT, 127)
    cdef uint8_t *out = <uint8_t *>PyUnicode_1BYTE_DATA(text)
    cdef const char *digits = b"0123456789abcdef"
    cdef Py_ssize_t i
    for i in range(ID_OCTETS):
        if i == 4 or i == 6 or i == 8 or i == 10:
            out[0] = c"-"
            out += 1
        out[0] = digits[octets[i] >> 4]
        out[1] = digits[octets[i] & 15]
        out += 2
    return text


def new_id() -> str:
    """Return a uuid4 (RFC 9562 section 5.4): 122 random bits that nobody can guess."""
    cdef bytes random = os.urandom(ID_OCTETS)
    cdef uint8_t octets[ID_OCTETS]
    memcpy(octets, PyBytes_AS_STRING(random), ID_OCTETS)
    octets[6] = 0x40 | octets[6] & 0x0f
    octets[8] = 0x80 | octets[8] & 0x3f
    return id_text(octets)


def squeeze(*facts: str | int | None) -> bytes:
    """Return facts as octets, for `stretch` in this process; an id takes half of its text.

    Raises:
        OverflowError: an integer has more than 64 bits.
        TypeError: a fact is of another type.
        UnicodeEncodeError: a text has surrogates.
    """
    cdef bytearray packed = bytearray()
    cdef uint8_t octets[ID_OCTETS + 1]
    cdef const uint8_t *text
    cdef Py_ssize_t size
    cdef int64_t number
    for fact in facts:
        if fact is None:
            packed.append(FACT_NONE)
        elif type(fact) is str:
            text = <const uint8_t *>PyUnicode_AsUTF8AndSize(fact, &size)
            octets[0] = FACT_ID
            if id_read(text, size, octets + 1):
                packed += octets[: ID_OCTETS + 1]
                continue
            if size < FACT_TEXT:
                packed.append(<uint8_t>size)
            else:
                packed.append(FACT_TEXT)
                packed += size.to_bytes(4, "little")
            packed += text[:size]
        elif type(fact) is int:
            number = fact
            octets[0] = FACT_SHORT if 0 <= number < <int64_t>1 << 40 else FACT_LONG
            memcpy(octets + 1, &number, 8)
            packed += octets[: 6 if octets[0] == FACT_SHORT else 9]
        else:
            raise TypeError(f"a fact is a text, an integer or None, not {type(fact).__name__}")
    return bytes(packed)


def stretch(packed: bytes, at: int = 0) -> tuple:
    """Return the facts that `squeeze` packed, which begin at a place.

    Raises:
        ValueError: the octets are not what it returned.
    """
    cdef list facts = []
    cdef const uint8_t *octets = <const uint8_t *>PyBytes_AS_STRING(packed)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(packed), place = at, length
    cdef uint8_t kind
    cdef uint32_t long_length
    cdef int64_t number
    while 0 <= place < size:
        kind = octets[place]
        place += 1
        length = kind
        if kind == FACT_NONE:
            length = 0
        elif kind == FACT_ID:
            length = ID_OCTETS
        elif kind == FACT_SHORT:
            length = 5
        elif kind == FACT_LONG:
            length = 8
        elif kind == FACT_TEXT:
            if size - place < 4:
                break
            memcpy(&long_length, octets + place, 4)
            length = long_length
            place += 4
        if kind > FACT_LONG or length > size - place:
            break
        if kind == FACT_NONE:
            facts.append(None)
        elif kind == FACT_ID:
            facts.append(id_text(octets + place))
        elif kind == FACT_SHORT or kind == FACT_LONG:
            number = 0
            memcpy(&number, octets + place, <size_t>length)
            facts.append(number)
        else:
            facts.append(octets[place : place + length].decode("utf-8"))
        place += length
    else:
        return tuple(facts)
    raise ValueError("these facts were not squeezed here")


@cython.no_gc
cdef class Seat:
    """The base of a connection's owner, which has everything that an owner remembers.

    The garbage collector knows nothing of it: thousands of them live long, none is part of a circle
    that is to be found, and each full collection would walk them all.

    Attributes:
        conn: the core's handle.
        phase: a number below 256 that means something to the owner.
        id: the connection's id.
        record: octets, or None.
    """

    cdef public object _host, _fresh, _rare     # the owner's, and None at first
    cdef uint8_t *_record       # two octets of length, then the record; or NULL
    cdef PyObject *_next        # in `Seats`, of those with the same head
    cdef uint8_t _id[ID_OCTETS]
    cdef uint32_t _generation   # of the handle
    cdef uint16_t _slot
    cdef public uint8_t phase
    cdef uint8_t _is_listed     # in `Seats`

    def __cinit__(self, *args: object, **kwargs: object) -> None:
        if PyObject_IS_GC(self):        # as whatever a class statement makes
            PyObject_GC_UnTrack(<void *>self)

    def __dealloc__(self) -> None:
        PyObject_Free(self._record)

    @property
    def conn(self) -> int:
        return <uint64_t>self._generation << 16 | self._slot

    @conn.setter
    def conn(self, handle: int) -> None:
        cdef uint64_t tag = handle
        if tag >> 48:
            raise OverflowError("a handle has 48 bits")
        self._generation = <uint32_t>(tag >> 16)
        self._slot = <uint16_t>tag

    @property
    def id(self) -> str:
        return id_text(self._id)

    @id.setter
    def id(self, ident: str) -> None:
        cdef Py_ssize_t size
        cdef const uint8_t *text = <const uint8_t *>PyUnicode_AsUTF8AndSize(ident, &size)
        cdef uint8_t octets[ID_OCTETS]
        if self._is_listed:
            raise ValueError("it is known by its id already")
        if not id_read(text, size, octets):
            raise ValueError(f"{ident!r} is not an id in lower case")
        memcpy(self._id, octets, ID_OCTETS)

    @property
    def record(self) -> bytes | None:
        cdef uint16_t size
        if self._record == NULL:
            return None
        memcpy(&size, self._record, sizeof(size))
        return self._record[sizeof(size) : sizeof(size) + size]

    @record.setter
    def record(self, record: bytes | None) -> None:
        cdef uint8_t *block = NULL
        cdef uint16_t size
        if record is not None:
            if len(record) > MOST_RECORD:
                raise ValueError(f"a record has at most {MOST_RECORD} octets")
            size = <uint16_t>PyBytes_GET_SIZE(record)
            block = <uint8_t *>PyObject_Malloc(sizeof(size) + size)
            if block == NULL:
                raise MemoryError("no memory for a record")
            memcpy(block, &size, sizeof(size))
            memcpy(block + sizeof(size), PyBytes_AS_STRING(record), size)
        PyObject_Free(self._record)
        self._record = block


cdef class Seats:
    """Seats by their ids: a set that takes 16 octets for each of them."""

    cdef PyObject **heads       # of lists linked by `_next`, each entry a reference
    cdef uint32_t size          # how many heads, a power of two
    cdef uint32_t used

    def __cinit__(self) -> None:
        self.size = LEAST_HEADS
        self.heads = <PyObject **>calloc(self.size, sizeof(PyObject *))
        if self.heads == NULL:
            raise MemoryError("no memory for seats")

    def __dealloc__(self) -> None:
        cdef uint32_t at
        cdef Seat seat
        if self.heads != NULL:
            for at in range(self.size):
                while self.heads[at] != NULL:
                    seat = <Seat>self.heads[at]
                    self._unlink(seat, &self.heads[at])
        free(self.heads)

    def __len__(self) -> int:
        return self.used

    @cython.final
    cdef inline PyObject **_head(self, const uint8_t *octets) noexcept:
        # Ids are random and made here, so any of their octets are a hash.
        cdef uint32_t hash
        memcpy(&hash, octets, sizeof(hash))
        return &self.heads[hash & (self.size - 1)]

    @cython.final
    cdef PyObject **_place(self, const uint8_t *octets) noexcept:
        """Where the reference to a seat is, or where it would be put."""
        cdef PyObject **place = self._head(octets)
        while place[0] != NULL and memcmp((<Seat>place[0])._id, octets, ID_OCTETS) != 0:
            place = &(<Seat>place[0])._next
        return place

    @cython.final
    cdef int _unlink(self, Seat seat, PyObject **place) except -1:
        place[0] = seat._next
        seat._next = NULL
        seat._is_listed = False
        self.used -= 1
        Py_DECREF(seat)
        return 0

    @cython.final
    cdef int _grow(self) except -1:
        cdef PyObject **old = self.heads
        cdef PyObject **heads = <PyObject **>calloc(self.size * 2, sizeof(PyObject *))
        cdef PyObject **head
        cdef PyObject *entry
        cdef PyObject *after
        cdef uint32_t at
        if heads == NULL:
            raise MemoryError("no memory for more seats")
        self.heads = heads
        self.size *= 2
        for at in range(self.size // 2):
            entry = old[at]
            while entry != NULL:
                after = (<Seat>entry)._next
                head = self._head((<Seat>entry)._id)
                (<Seat>entry)._next = head[0]
                head[0] = entry
                entry = after
        free(old)
        return 0

    def add(self, seat: Seat) -> None:
        """Take a seat in; its id stays as it is from now on.

        Raises:
            ValueError: it is in already, here or elsewhere, or another one has its id.
        """
        cdef PyObject **place
        if seat._is_listed or self._place(seat._id)[0] != NULL:
            raise ValueError(f"{seat.id} is known already")
        if self.used == self.size:
            self._grow()
        place = self._place(seat._id)
        Py_INCREF(seat)
        place[0] = <PyObject *>seat
        seat._is_listed = True
        self.used += 1

    def remove(self, seat: Seat) -> None:
        """Undo `add`.

        Raises:
            KeyError: it is not here.
        """
        cdef PyObject **place = self._place(seat._id)
        if place[0] != <PyObject *>seat:
            raise KeyError(seat.id)
        self._unlink(seat, place)

    def find(self, ident: str) -> object:
        """Return the seat with an id, or None; any text may be looked for."""
        cdef Py_ssize_t size
        cdef uint8_t octets[ID_OCTETS]
        cdef PyObject **place
        if len(ident) != ID_TEXT or not ident.isascii():
            return None
        if not id_read(<const uint8_t *>PyUnicode_AsUTF8AndSize(ident, &size), ID_TEXT, octets):
            return None
        place = self._place(octets)
        return <object>place[0] if place[0] != NULL else None
