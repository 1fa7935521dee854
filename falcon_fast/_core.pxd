"""The map of native state: what a connection, a room and a tick are made of.

Everything here is plain C memory. A connection owns one reference to its Python owner and nothing
else that the interpreter knows of; a silent connection owns no buffer at all.
"""

from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "Python.h":
    ctypedef struct PyObject:
        pass


cdef struct Assembly:
    # What is known of a frame or a message that has not arrived in one piece. Allocated when the
    # first piece is, freed with the last.
    uint8_t header[14]
    uint8_t header_size         # octets of `header` that have arrived, 0 between frames
    bint in_payload             # the header is complete, payload is still to come
    uint8_t opcode              # of the current frame
    bint fin
    uint8_t mask[4]
    uint64_t arrived            # payload octets of the current frame that were taken
    uint64_t missing            # payload octets of the current frame still to come
    uint8_t pong_size
    bint pong_owed
    uint8_t message_opcode      # 0 while no data message is in progress
    uint32_t fragments
    uint32_t utf8
    bint compressed             # that message; then `data` is what arrived, not yet inflated
    uint8_t *data
    size_t size
    size_t capacity
    uint8_t control[125]        # from here on nothing is zero at first
    uint8_t pong[125]           # the answer owed to the latest ping while the queue is full


cdef struct Block:
    # Frames of one tick, shared by every member that could not take them at once.
    uint32_t references
    uint32_t size
    uint8_t data[1]


cdef struct Queued:
    Queued *next
    Block *block
    uint32_t offset
    uint32_t messages


cdef struct Queue:
    # What a peer has not taken yet; there is one while something waits.
    Queued *head
    Queued *tail
    uint32_t bytes
    uint32_t messages
    uint32_t progress_at        # last time the peer took something off it, as all times in Conn
    uint32_t transport_backlog


cdef struct Held:
    # Input that arrived before `resume`.
    uint32_t size
    uint8_t data[1]


cdef enum:
    FEW_ROOMS = 4               # rooms of a connection that need no memory of their own
    FEW_MEMBERS = 4             # members of a room, likewise

cdef union RoomNumbers:
    uint32_t few[FEW_ROOMS]
    uint32_t *many


cdef struct Conn:
    PyObject *owner
    PyObject *link              # the Link of a connection that kept its asyncio transport, or NULL
    Assembly *assembly
    Held *held
    Queue *queue                # NULL while nothing waits
    RoomNumbers rooms           # see `rooms_in`
    int fd
    uint32_t generation
    uint32_t last_seen          # milliseconds since the core was made, modulo 2**32, like all below
    uint32_t alarm              # the next ping; of a CLOSING connection, when it is let go
    uint32_t expires            # ticks of the wheel since the core was made, 0 = never
    uint32_t rate_at
    uint32_t refused_since
    uint32_t refused_at
    uint32_t tokens             # thousandths of a message
    int32_t wheel_next
    int32_t wheel_previous
    int16_t wheel_bucket        # -1 while in no bucket
    uint16_t room_count
    uint16_t room_capacity
    uint8_t state
    uint8_t flags


cdef enum:
    IN_BITS = 0                 # Room.capacity of a room that is a bitset
    NO_ENTRY = -1               # Room.first_entry
    NOT_OPEN = -2

cdef union Slots:
    uint16_t few[FEW_MEMBERS]
    uint16_t *many
    uint64_t *bits


cdef struct Room:
    Slots slots                 # see _core_sets.pxi
    uint32_t count
    uint32_t capacity
    int32_t first_entry         # this tick's messages, or NO_ENTRY, or NOT_OPEN
    int32_t last_entry


cdef struct Entry:
    # One frame of the current tick: its place in the arena, and the next one for the same target.
    uint32_t offset
    uint32_t size
    int32_t next


cdef struct Packed:
    # What a frame of the current tick becomes in one variant; size 0 while nobody has looked.
    uint32_t offset             # in the arena of compressed frames
    uint32_t size


cdef struct Mix:
    # One distinct set of rooms with news that some member is in (see _Output._sort_members). The
    # first ones stand for the variants, and hold no room.
    uint32_t parent
    uint32_t room
    uint32_t stamp
    uint32_t child
    uint32_t count
    uint32_t start


cdef enum:
    HISTOGRAM_BOUNDS = 13

cdef struct Histogram:
    # counts[i] values were above bounds[i - 1] and at most bounds[i]; the last one has no bound.
    uint64_t counts[HISTOGRAM_BOUNDS + 1]
    uint64_t sum


cdef struct Counters:
    # Since the core was made; what each is called in Python.
    uint64_t frames_in
    uint64_t messages_in
    uint64_t bytes_in
    uint64_t bytes_out
    uint64_t deliveries
    uint64_t sends              # calls of the kernel or a transport
    uint64_t flushes            # ticks in which something was said
    uint64_t refused            # messages over the rate
    uint64_t adopted
    uint64_t compressions       # runs of zlib: one for each message and variant that needs it
    uint64_t compression_in     # octets of messages handed to them
    uint64_t compression_out    # and what was sent in their place
    uint64_t compressed_deliveries
    uint64_t inflations         # compressed messages from clients
    uint64_t inflation_in
    uint64_t inflation_out


cdef struct Doomed:
    uint32_t slot
    uint32_t generation
    int32_t reason
