# What a core consists of: its attributes, the memory behind them, the slots and the handles.

cdef Assembly *new_assembly(Conn *conn) except NULL:
    cdef Assembly *assembly = <Assembly *>malloc(sizeof(Assembly))
    if assembly == NULL:
        raise MemoryError("no memory for a message")
    memset(assembly, 0, <size_t>(&assembly.control[0] - <uint8_t *>assembly))
    conn.assembly = assembly
    return assembly


cdef void free_assembly(Conn *conn) noexcept:
    if conn.assembly != NULL:
        free(conn.assembly.data)
        free(conn.assembly)
        conn.assembly = NULL


cdef inline uint32_t *rooms_in(Conn *conn) noexcept:
    # The numbers of the rooms a connection is in; few of them are in place.
    return &conn.rooms.few[0] if conn.room_capacity <= FEW_ROOMS else conn.rooms.many


cdef int add_room(Conn *conn, uint32_t number) except -1:
    cdef uint32_t capacity = conn.room_capacity
    cdef bint few = capacity <= FEW_ROOMS
    cdef uint32_t *rooms
    if conn.room_count == capacity:
        capacity *= 2
        rooms = <uint32_t *>realloc(NULL if few else conn.rooms.many, capacity * sizeof(uint32_t))
        if rooms == NULL:
            raise MemoryError("no memory for a connection's rooms")
        if few:
            memcpy(rooms, conn.rooms.few, sizeof(conn.rooms.few))
        conn.rooms.many = rooms
        conn.room_capacity = <uint16_t>capacity
    rooms_in(conn)[conn.room_count] = number
    conn.room_count += 1
    return 0


cdef void forget_rooms(Conn *conn) noexcept:
    if conn.room_capacity > FEW_ROOMS:
        free(conn.rooms.many)
    conn.room_count = 0
    conn.room_capacity = FEW_ROOMS


cdef class _State:
    """Attributes, memory, slots and handles."""

    cdef:
        object on_message, on_close, on_refused, on_expire, on_error, schedule, clock, on_hurry
        list close_frames       #: list[bytes]
        list close_codes        #: list[int]
        int poll_fd             # the epoll set, -1 without one
        uint32_t max_connections, words, max_fragments, max_queue_bytes, max_queue_messages
        uint32_t max_rooms, write_timeout, ping_interval, ping_timeout
        uint64_t max_message_bytes
        double message_rate, message_burst
        uint32_t deflate_min_bytes
        int deflate_level

        Conn *conns
        uint32_t *free_slots
        uint32_t free_count
        uint32_t fresh_slot     # slots from here on were never used
        uint32_t *dead_slots
        uint32_t dead_count
        uint32_t open_count     # connections that are held or open
        uint32_t deflate_count  # of these, the ones that agreed on permessage-deflate
        uint8_t *variant_of     # PLAIN, or the bits of a window less 8, by slot

        Room *rooms
        uint32_t room_capacity, room_used
        list free_rooms         #: list[int]

        uint8_t *read_buffer
        epoll_event events[EVENTS_PER_WAKE]
        int event_at, event_count

        int32_t wheel[BUCKETS]
        uint64_t started_ns, now_ms, wheel_at, next_tick, grace_until
        double started

        uint8_t *arena
        size_t arena_size, arena_capacity
        Entry *entries
        uint32_t entry_count, entry_capacity
        uint32_t *dirty
        uint32_t dirty_count, dirty_capacity
        uint32_t *private_slots
        uint32_t private_count
        int32_t *own_first      # entries for one connection only, by slot
        int32_t *own_last
        uint32_t *cursor        # entries below this one were already sent to the slot
        uint32_t *mix_of
        uint16_t *touched
        uint16_t *sorted_slots
        Mix *mixes
        uint32_t mix_count, mix_capacity, stamp
        uint32_t *indexes
        uint32_t index_count, index_capacity
        uint8_t *scratch
        size_t scratch_capacity
        const uint8_t *out
        size_t out_size
        uint32_t out_messages
        uint32_t out_packed     # of these, the ones that are compressed
        Block *out_block
        object out_bytes

        z_stream *deflaters[VARIANTS]
        Packed *packed[VARIANTS]    # what the tick's entries are in each variant
        uint32_t packed_count[VARIANTS]
        uint32_t packed_capacity[VARIANTS]
        uint8_t *packed_arena
        size_t packed_size, packed_arena_capacity
        z_stream *inflater
        uint8_t *inflated       # one message at a time
        size_t inflated_size, inflated_capacity

        Doomed *doomed
        uint32_t doomed_count, doomed_capacity
        int depth
        bint flushing, scheduled
        uint32_t random

        Counters counted
        Histogram tick_messages, flush_microseconds

    def __cinit__(self, *args: object, **kwargs: object) -> None:
        self.poll_fd = -1

    @cython.final
    cdef int _allocate(self) except -1:
        cdef uint32_t i
        # Zeroed pages cost nothing until a slot is used for the first time.
        self.conns = <Conn *>calloc(self.max_connections, sizeof(Conn))
        self.free_slots = <uint32_t *>calloc(self.max_connections, sizeof(uint32_t))
        self.dead_slots = <uint32_t *>calloc(self.max_connections, sizeof(uint32_t))
        self.private_slots = <uint32_t *>calloc(self.max_connections, sizeof(uint32_t))
        self.own_first = <int32_t *>calloc(self.max_connections, sizeof(int32_t))
        self.own_last = <int32_t *>calloc(self.max_connections, sizeof(int32_t))
        self.cursor = <uint32_t *>calloc(self.max_connections, sizeof(uint32_t))
        self.mix_of = <uint32_t *>calloc(self.max_connections, sizeof(uint32_t))
        self.variant_of = <uint8_t *>calloc(self.max_connections, sizeof(uint8_t))
        self.touched = <uint16_t *>calloc(self.max_connections, sizeof(uint16_t))
        self.sorted_slots = <uint16_t *>calloc(self.max_connections, sizeof(uint16_t))
        self.read_buffer = <uint8_t *>malloc(READ_SIZE)
        if (
            self.conns == NULL or self.free_slots == NULL or self.dead_slots == NULL
            or self.private_slots == NULL or self.own_first == NULL or self.own_last == NULL
            or self.cursor == NULL or self.mix_of == NULL or self.touched == NULL
            or self.variant_of == NULL or self.sorted_slots == NULL or self.read_buffer == NULL
        ):
            raise MemoryError(f"no memory for {self.max_connections} connection slots")
        for i in range(<uint32_t>BUCKETS):
            self.wheel[i] = -1
        self.free_rooms = []
        return 0

    def __dealloc__(self) -> None:
        cdef uint32_t i
        if self.conns != NULL:
            for i in range(self.fresh_slot):
                if self.conns[i].state != FREE and self.conns[i].state != DEAD:
                    self._drop_memory(i)
        for i in range(self.room_used):
            room_clear(&self.rooms[i])
        free(self.conns)
        free(self.free_slots)
        free(self.dead_slots)
        free(self.private_slots)
        free(self.own_first)
        free(self.own_last)
        free(self.cursor)
        free(self.mix_of)
        free(self.variant_of)
        free(self.touched)
        free(self.sorted_slots)
        free(self.read_buffer)
        free(self.rooms)
        free(self.arena)
        free(self.entries)
        free(self.dirty)
        free(self.mixes)
        free(self.indexes)
        free(self.scratch)
        free(self.doomed)
        if self.poll_fd >= 0:
            c_close(self.poll_fd)

    # ------------------------------------------------------------------------------------ slots

    @cython.final
    cdef uint32_t _new_slot(self, object owner, bytes early) except? 0xffffffff:
        cdef uint32_t slot
        cdef Conn *conn
        cdef Held *held = NULL
        if self.free_count:
            slot = self.free_slots[self.free_count - 1]
        elif self.fresh_slot < self.max_connections:
            slot = self.fresh_slot
        else:
            raise ConnectionError(f"all {self.max_connections} connection slots are taken")
        if early:
            held = <Held *>malloc(sizeof(Held) + PyBytes_GET_SIZE(early))
            if held == NULL:
                raise MemoryError("no memory for early input")
            held.size = <uint32_t>PyBytes_GET_SIZE(early)
            memcpy(held.data, PyBytes_AS_STRING(early), held.size)
        if self.free_count:
            self.free_count -= 1
        else:
            self.fresh_slot += 1
        conn = &self.conns[slot]
        conn.fd = -1
        conn.state = HELD
        conn.flags = 0
        conn.wheel_bucket = -1
        conn.held = held
        conn.room_capacity = FEW_ROOMS
        conn.expires = 0
        conn.tokens = <uint32_t>(self.message_burst * 1000)
        conn.refused_at = 0
        Py_INCREF(owner)
        conn.owner = <PyObject *>owner
        return slot

    @cython.final
    cdef void _drop_memory(self, uint32_t slot) noexcept:
        cdef Conn *conn = &self.conns[slot]
        if conn.fd >= 0:
            c_close(conn.fd)
            conn.fd = -1
        queue_clear(conn)
        free_assembly(conn)
        free(conn.held)
        conn.held = NULL
        forget_rooms(conn)
        if conn.owner != NULL:
            Py_DECREF(<object>conn.owner)
            conn.owner = NULL
        if conn.link != NULL:
            Py_DECREF(<object>conn.link)
            conn.link = NULL

    @cython.final
    cdef void _recycle(self) noexcept:
        cdef uint32_t i
        for i in range(self.dead_count):
            self.conns[self.dead_slots[i]].state = FREE
            self.free_slots[self.free_count] = self.dead_slots[i]
            self.free_count += 1
        self.dead_count = 0

    @cython.final
    cdef void _tidy(self, Conn *conn) noexcept:
        cdef Assembly *assembly = conn.assembly
        if assembly != NULL and not (
            assembly.header_size or assembly.in_payload or assembly.message_opcode
            or assembly.pong_owed
        ):
            free_assembly(conn)

    # ---------------------------------------------------------------------------------- handles

    @cython.final
    cdef inline uint64_t _tag(self, uint32_t slot) noexcept:
        return <uint64_t>self.conns[slot].generation << 16 | slot

    @cython.final
    cdef inline object _handle(self, uint32_t slot):
        return self._tag(slot)

    @cython.final
    cdef bint _find(self, object handle, uint32_t *slot) except -1:
        """Find the slot of a connection that is held or open; False for any other handle."""
        cdef uint64_t tag = handle
        slot[0] = <uint32_t>(tag & 0xffff)
        if slot[0] >= self.fresh_slot or self.conns[slot[0]].generation != <uint32_t>(tag >> 16):
            return False
        return self.conns[slot[0]].state == HELD or self.conns[slot[0]].state == OPEN
