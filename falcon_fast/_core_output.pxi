# The way out: what is said during a tick is noted as frames in an arena, put together once for all
# members with the same news, sent with one call per member; what a peer does not take is queued.

# What a tick held and how long it took to send it: noted once a tick, read when metrics are.
cdef uint32_t[HISTOGRAM_BOUNDS] TICK_MESSAGES = [
    1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096, 16384
]

cdef uint32_t[HISTOGRAM_BOUNDS] FLUSH_MICROSECONDS = [
    10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 25000, 100000, 500000
]


cdef void histogram_add(
    Histogram *histogram, const uint32_t *bounds, uint64_t value
) noexcept nogil:
    cdef int i = 0
    while i < HISTOGRAM_BOUNDS and value > bounds[i]:
        i += 1
    histogram.counts[i] += 1
    histogram.sum += value


cdef tuple histogram_read(const Histogram *histogram, const uint32_t *bounds):
    cdef int i
    return (
        tuple([bounds[i] for i in range(HISTOGRAM_BOUNDS)]),
        tuple([histogram.counts[i] for i in range(HISTOGRAM_BOUNDS + 1)]),
        histogram.sum,
    )


cdef int compare_indexes(const void *left, const void *right) noexcept nogil:
    cdef uint32_t a = (<const uint32_t *>left)[0], b = (<const uint32_t *>right)[0]
    return (a > b) - (a < b)


cdef class _Output(_Deflate):
    """Noting, sending and queueing of messages."""

    # ----------------------------------------------------------------------------------- noting

    @cython.final
    cdef uint32_t _fan_out(self, uint32_t number, bytes payload, uint8_t opcode) except? 0xffffffff:
        cdef Room *room
        cdef uint32_t *dirty
        cdef uint32_t capacity
        cdef int32_t index
        if self.rooms[number].count == 0:
            return 0
        index = self._note(
            opcode, <const uint8_t *>PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload)
        )
        room = &self.rooms[number]
        if room.first_entry < 0:
            if self.dirty_count == self.dirty_capacity:
                capacity = max(self.dirty_capacity * 2, 64)
                dirty = <uint32_t *>realloc(self.dirty, capacity * sizeof(uint32_t))
                if dirty == NULL:
                    raise MemoryError("no memory for a tick's rooms")
                self.dirty = dirty
                self.dirty_capacity = capacity
            self.dirty[self.dirty_count] = number
            self.dirty_count += 1
            room.first_entry = index
        else:
            self.entries[room.last_entry].next = index
        room.last_entry = index
        self.counted.deliveries += room.count
        return room.count

    @cython.final
    cdef int _note_own(
        self, uint32_t slot, uint8_t opcode, const uint8_t *payload, size_t size
    ) except -1:
        cdef int32_t index = self._note(opcode, payload, size)
        self._mark_private(slot)
        # Stored plus one, so that zeroed memory means "none".
        if self.own_first[slot] == 0:
            self.own_first[slot] = index + 1
        else:
            self.entries[self.own_last[slot] - 1].next = index
        self.own_last[slot] = index + 1
        return 0

    @cython.final
    cdef inline void _mark_private(self, uint32_t slot) noexcept:
        if not self.conns[slot].flags & PRIVATE:
            self.conns[slot].flags |= PRIVATE
            self.private_slots[self.private_count] = slot
            self.private_count += 1

    @cython.final
    cdef int32_t _note(self, uint8_t opcode, const uint8_t *payload, size_t size) except -1:
        """Build a frame in the tick's arena and return the number of its entry."""
        cdef size_t needed = size + 10, capacity
        cdef uint8_t *arena
        cdef Entry *entries
        cdef Entry *entry
        cdef uint8_t *frame
        if self.flushing:
            raise RuntimeError("nothing may be sent while messages are being sent")
        if self.arena_size and self.arena_size + needed > ARENA_LIMIT:
            self._flush_sends()
        if self.arena_size + needed > self.arena_capacity:
            capacity = max(self.arena_capacity * 2, self.arena_size + needed, <size_t>4096)
            arena = <uint8_t *>realloc(self.arena, capacity)
            if arena == NULL:
                raise MemoryError("no memory for a message")
            self.arena = arena
            self.arena_capacity = capacity
        if self.entry_count == self.entry_capacity:
            capacity = max(self.entry_capacity * 2, 64)
            entries = <Entry *>realloc(self.entries, capacity * sizeof(Entry))
            if entries == NULL:
                raise MemoryError("no memory for a message")
            self.entries = entries
            self.entry_capacity = <uint32_t>capacity
        frame = self.arena + self.arena_size
        needed = put_header(frame, 0x80 | opcode, size)
        if size:
            memcpy(frame + needed, payload, size)
        entry = &self.entries[self.entry_count]
        entry.offset = <uint32_t>self.arena_size
        entry.size = <uint32_t>(needed + size)
        entry.next = -1
        self.arena_size += needed + size
        self.entry_count += 1
        self._schedule_pending()
        return <int32_t>(self.entry_count - 1)

    @cython.final
    cdef int _schedule_pending(self) except -1:
        if self.depth == 0 and (self.entry_count or self.doomed_count) and not self.scheduled:
            self._schedule()
        return 0

    @cython.final
    cdef int _schedule(self) except -1:
        self.scheduled = True
        self.schedule(self.flush)       # of Core, found by its name
        return 0

    # ---------------------------------------------------------------------------------- sending

    @cython.final
    cdef int _flush_sends(self) except -1:
        """Send the tick's messages: one call per member, whatever the number of messages.

        Members are sorted by their variant and the set of rooms with news that they are in (their
        mix). All members of a mix get the same messages in the same form and order, so these are
        put in one piece once, and compressed once if they are to be.
        """
        cdef uint32_t i, k, slot, mix
        cdef uint64_t began
        if self.entry_count == 0:
            self._recycle()
            return 0
        began = ff_monotonic_ns()
        self.flushing = True
        try:
            self._sort_members()
            for mix in range(VARIANTS, self.mix_count):
                if self.mixes[mix].count == 0:
                    continue
                self._gather(self.variant_of[self.sorted_slots[self.mixes[mix].start]], mix, 0, 0)
                for k in range(self.mixes[mix].start, self.mixes[mix].start + self.mixes[mix].count):
                    self._deliver(self.sorted_slots[k])
            for i in range(self.private_count):
                slot = self.private_slots[i]
                if self.conns[slot].state == HELD or self.conns[slot].state == OPEN:
                    self._gather(
                        self.variant_of[slot], self.mix_of[slot], self.cursor[slot],
                        self.own_first[slot],
                    )
                    self._deliver(slot)
        except BaseException:
            for slot in range(self.fresh_slot):
                self.mix_of[slot] = 0
            raise
        finally:
            histogram_add(&self.tick_messages, TICK_MESSAGES, self.entry_count)
            histogram_add(
                &self.flush_microseconds, FLUSH_MICROSECONDS, (ff_monotonic_ns() - began) // 1000
            )
            self._end_tick()
        return 0

    @cython.final
    cdef int _sort_members(self) except -1:
        cdef uint32_t i, k, slot, word, mix, start = 0, touched = 0
        cdef uint64_t left
        cdef Room *room
        cdef uint16_t *slots
        self.mix_count = 0
        self.stamp = 0          # all mixes are new: a stamp that wrapped around would meet theirs
        for i in range(<uint32_t>VARIANTS):
            self._new_mix(0, 0)     # no news yet
        for i in range(self.dirty_count):
            room = &self.rooms[self.dirty[i]]
            self.stamp += 1
            if room.capacity == IN_BITS:
                for word in range(self.words):
                    left = room.slots.bits[word]
                    while left:
                        slot = (word << 6) + <uint32_t>__builtin_ctzll(left)
                        left &= left - 1
                        if self.mix_of[slot] == 0:
                            self.mix_of[slot] = self.variant_of[slot]
                            self.touched[touched] = <uint16_t>slot
                            touched += 1
                        self._remix(slot, self.dirty[i])
            else:
                slots = room_slots(room)
                for k in range(room.count):
                    slot = slots[k]
                    if self.mix_of[slot] == 0:
                        self.mix_of[slot] = self.variant_of[slot]
                        self.touched[touched] = <uint16_t>slot
                        touched += 1
                    self._remix(slot, self.dirty[i])
        # A counting sort by mix. Who has something private is served by itself.
        for i in range(touched):
            slot = self.touched[i]
            if not self.conns[slot].flags & PRIVATE:
                self.mixes[self.mix_of[slot]].count += 1
        for mix in range(VARIANTS, self.mix_count):
            self.mixes[mix].start = start
            start += self.mixes[mix].count
            self.mixes[mix].count = 0
        for i in range(touched):
            slot = self.touched[i]
            mix = self.mix_of[slot]
            if not self.conns[slot].flags & PRIVATE:
                self.sorted_slots[self.mixes[mix].start + self.mixes[mix].count] = <uint16_t>slot
                self.mixes[mix].count += 1
                self.mix_of[slot] = 0
        return 0

    @cython.final
    cdef inline int _remix(self, uint32_t slot, uint32_t room) except -1:
        cdef uint32_t mix = self.mix_of[slot], child
        if self.mixes[mix].stamp != self.stamp:
            child = self._new_mix(mix, room)
            self.mixes[mix].stamp = self.stamp
            self.mixes[mix].child = child
        self.mix_of[slot] = self.mixes[mix].child
        return 0

    @cython.final
    cdef uint32_t _new_mix(self, uint32_t parent, uint32_t room) except? 0xffffffff:
        cdef Mix *mixes
        cdef Mix *mix
        cdef uint32_t capacity
        if self.mix_count == self.mix_capacity:
            capacity = max(self.mix_capacity * 2, 64)
            mixes = <Mix *>realloc(self.mixes, capacity * sizeof(Mix))
            if mixes == NULL:
                raise MemoryError("no memory to sort a tick's members")
            self.mixes = mixes
            self.mix_capacity = capacity
        mix = &self.mixes[self.mix_count]
        mix.parent = parent
        mix.room = room
        mix.stamp = 0
        mix.count = 0
        mix.start = 0
        self.mix_count += 1
        return self.mix_count - 1

    @cython.final
    cdef int _index(self, int32_t first, uint32_t since) except -1:
        cdef uint32_t *indexes
        cdef int32_t entry = first
        if self.index_capacity < self.entry_count:
            indexes = <uint32_t *>realloc(self.indexes, self.entry_capacity * sizeof(uint32_t))
            if indexes == NULL:
                raise MemoryError("no memory to sort a tick's messages")
            self.indexes = indexes
            self.index_capacity = self.entry_capacity
        while entry >= 0:
            if <uint32_t>entry >= since:
                self.indexes[self.index_count] = <uint32_t>entry
                self.index_count += 1
            entry = self.entries[entry].next
        return 0

    @cython.final
    cdef int _gather(self, uint32_t variant, uint32_t mix, uint32_t since, int32_t own) except -1:
        """Put together what members of a mix get, from entry `since` on, with own entries mixed in."""
        cdef uint32_t sources = 0
        self.index_count = 0
        while mix >= VARIANTS:
            self._index(self.rooms[self.mixes[mix].room].first_entry, since)
            mix = self.mixes[mix].parent
            sources += 1
        if own:
            self._index(own - 1, 0)
            sources += 1
        return self._join_up(variant, sources)

    @cython.final
    cdef inline const uint8_t *_piece(self, uint32_t variant, uint32_t index, size_t *size) noexcept:
        """Find a frame of the tick in the form that it has in a variant."""
        if variant != PLAIN and self.packed[variant][index].offset != <uint32_t>AS_IT_IS:
            size[0] = self.packed[variant][index].size
            return self.packed_arena + self.packed[variant][index].offset
        size[0] = self.entries[index].size
        return self.arena + self.entries[index].offset

    @cython.final
    cdef int _join_up(self, uint32_t variant, uint32_t sources) except -1:
        cdef uint32_t i
        cdef size_t size = 0, piece_size = 0, capacity
        cdef const uint8_t *first = NULL
        cdef const uint8_t *piece
        cdef uint8_t *scratch
        cdef bint in_one_piece = True
        if self.out_block != NULL:
            block_release(self.out_block)
            self.out_block = NULL
        self.out_bytes = None
        self.out_messages = self.index_count
        self.out_packed = 0
        self.out_size = 0
        if self.index_count == 0:
            return 0
        if sources > 1:
            qsort(self.indexes, self.index_count, sizeof(uint32_t), compare_indexes)
        if variant != PLAIN:
            self._ready_packed(variant)
            for i in range(self.index_count):
                self._pack(variant, self.indexes[i])
                self.out_packed += (
                    self.packed[variant][self.indexes[i]].offset != <uint32_t>AS_IT_IS
                )
        for i in range(self.index_count):
            piece = self._piece(variant, self.indexes[i], &piece_size)
            if i == 0:
                first = piece
            in_one_piece = in_one_piece and piece == first + size
            size += piece_size
        self.out_size = size
        if in_one_piece:
            self.out = first
            return 0
        if size > self.scratch_capacity:
            capacity = max(size, self.scratch_capacity * 2)
            scratch = <uint8_t *>realloc(self.scratch, capacity)
            if scratch == NULL:
                raise MemoryError("no memory to join a tick's messages")
            self.scratch = scratch
            self.scratch_capacity = capacity
        size = 0
        for i in range(self.index_count):
            piece = self._piece(variant, self.indexes[i], &piece_size)
            memcpy(self.scratch + size, piece, piece_size)
            size += piece_size
        self.out = self.scratch
        return 0

    @cython.final
    cdef void _end_tick(self) noexcept:
        cdef uint32_t i, slot
        for i in range(self.dirty_count):
            self.rooms[self.dirty[i]].first_entry = -1
            self.rooms[self.dirty[i]].last_entry = -1
        self.dirty_count = 0
        for i in range(self.private_count):
            slot = self.private_slots[i]
            self.conns[slot].flags &= ~PRIVATE
            self.cursor[slot] = 0
            self.own_first[slot] = self.own_last[slot] = 0
            self.mix_of[slot] = 0
        self.private_count = 0
        self.entry_count = 0
        self.arena_size = 0
        self._forget_packed()
        if self.out_block != NULL:
            block_release(self.out_block)
            self.out_block = NULL
        self.out_bytes = None
        if self.arena_capacity > ARENA_KEEP:
            free(self.arena)
            self.arena = NULL
            self.arena_capacity = 0
        if self.scratch_capacity > ARENA_KEEP:
            free(self.scratch)
            self.scratch = NULL
            self.scratch_capacity = 0
        self.flushing = False
        self.counted.flushes += 1
        self._recycle()

    @cython.final
    cdef void _forget_own(self, uint32_t slot) noexcept:
        if self.entry_count:
            self._mark_private(slot)
            self.own_first[slot] = self.own_last[slot] = 0
            self.cursor[slot] = self.entry_count

    @cython.final
    cdef int _flush_one(self, uint32_t slot) except -1:
        """Send one connection what is pending for it now, ahead of the end of the tick."""
        cdef Conn *conn = &self.conns[slot]
        cdef uint32_t *rooms = rooms_in(conn)
        cdef uint32_t i, sources = 0
        if self.entry_count == 0:
            return 0
        self.index_count = 0
        for i in range(conn.room_count):
            if self.rooms[rooms[i]].first_entry >= 0:
                self._index(self.rooms[rooms[i]].first_entry, self.cursor[slot])
                sources += 1
        if self.rooms[ALL].first_entry >= 0 and room_has(&self.rooms[ALL], <uint16_t>slot):
            self._index(self.rooms[ALL].first_entry, self.cursor[slot])
            sources += 1
        if self.own_first[slot]:
            self._index(self.own_first[slot] - 1, 0)
            sources += 1
        self._join_up(self.variant_of[slot], sources)
        self._deliver(slot)
        self._forget_own(slot)
        return 0

    @cython.final
    cdef inline int _deliver(self, uint32_t slot) except -1:
        cdef Conn *conn = &self.conns[slot]
        cdef ssize_t sent = 0
        if self.out_size == 0 or conn.flags & DOOMED_FLAG:
            return 0
        self.counted.compressed_deliveries += self.out_packed
        if conn.queue == NULL and conn.fd >= 0:
            sent = ff_send(conn.fd, self.out, self.out_size, False)
            self.counted.sends += 1
            if sent == <ssize_t>self.out_size:
                self.counted.bytes_out += self.out_size
                return 0
            if sent < 0:
                if not ff_would_block():
                    return self._doom(slot, CONNECTION_LOST)
                sent = 0
            self.counted.bytes_out += <size_t>sent
        elif conn.queue == NULL and not conn.flags & PAUSED:
            if self.out_bytes is None:
                self.out_bytes = PyBytes_FromStringAndSize(<const char *>self.out, self.out_size)
            self.counted.sends += 1
            self.counted.bytes_out += self.out_size
            return self._write(slot, self.out_bytes)
        if self.out_block == NULL:
            self.out_block = block_new(self.out, self.out_size)
        return self._enqueue(
            slot,
            self.out_block,
            <uint32_t>sent,
            frames_after(self.out_block, <uint32_t>sent) if sent else self.out_messages,
        )

    @cython.final
    cdef int _write(self, uint32_t slot, bytes data) except -1:
        # One broken transport must not keep the others from their messages.
        try:
            (<object>self.conns[slot].link).transport.write(data)
        except Exception as error:
            self.on_error(error)
            self._doom(slot, CONNECTION_LOST)
        return 0

    @cython.final
    cdef int _put(
        self, uint32_t slot, const uint8_t *data, size_t size, uint32_t messages
    ) except -1:
        """Send or queue octets that are not part of the tick (a Close frame)."""
        if self.out_block != NULL:
            block_release(self.out_block)
            self.out_block = NULL
        self.out_bytes = None
        self.out = data
        self.out_size = size
        self.out_messages = messages
        self.out_packed = 0
        try:
            self._deliver(slot)
        finally:
            if self.out_block != NULL:
                block_release(self.out_block)
                self.out_block = NULL
            self.out_bytes = None
            self.out_size = 0
        return 0

    # --------------------------------------------------------------------------------- queueing

    @cython.final
    cdef int _enqueue(self, uint32_t slot, Block *block, uint32_t offset, uint32_t messages) except -1:
        cdef Conn *conn = &self.conns[slot]
        cdef bint first = conn.queue == NULL
        queue_push(conn, block, offset, messages)
        if first:
            self._touch_clock()
            conn.queue.progress_at = <uint32_t>self.now_ms
            if conn.fd >= 0:
                self._watch(slot)
            else:
                conn.queue.transport_backlog = (<object>conn.link).transport.get_write_buffer_size()
            self._arm(slot)
        if conn.state != CLOSING and (
            conn.queue.bytes > self.max_queue_bytes
            or conn.queue.messages > self.max_queue_messages
        ):
            self._doom(slot, SLOW_CONSUMER)
        return 0

    @cython.final
    cdef int _doom(self, uint32_t slot, int reason) except -1:
        cdef Doomed *doomed
        cdef uint32_t capacity
        if self.conns[slot].flags & DOOMED_FLAG:
            return 0
        if self.doomed_count == self.doomed_capacity:
            capacity = max(self.doomed_capacity * 2, 64)
            doomed = <Doomed *>realloc(self.doomed, capacity * sizeof(Doomed))
            if doomed == NULL:
                raise MemoryError("no memory for the list of slow members")
            self.doomed = doomed
            self.doomed_capacity = capacity
        self.conns[slot].flags |= DOOMED_FLAG
        if reason == CONNECTION_LOST:
            self.conns[slot].flags |= GONE
        self.doomed[self.doomed_count].slot = slot
        self.doomed[self.doomed_count].generation = self.conns[slot].generation
        self.doomed[self.doomed_count].reason = reason
        self.doomed_count += 1
        self._schedule_pending()
        return 0

    @cython.final
    cdef int _watch(self, uint32_t slot) except -1:
        cdef Conn *conn = &self.conns[slot]
        cdef uint32_t interest = 0
        if conn.state != HELD:
            interest |= EPOLLIN
        if conn.queue != NULL:
            interest |= EPOLLOUT
        ff_epoll_ctl(self.poll_fd, EPOLL_CTL_MOD, conn.fd, interest, self._tag(slot))
        return 0

    @cython.final
    cdef int _drain(self, uint32_t slot) except -1:
        """Give the kernel, or the transport, more of the queue."""
        cdef Conn *conn = &self.conns[slot]
        cdef Queued *node
        cdef uint32_t left
        cdef ssize_t sent
        while conn.queue != NULL:
            node = conn.queue.head
            left = node.block.size - node.offset
            if conn.fd >= 0:
                sent = ff_send(conn.fd, node.block.data + node.offset, left, False)
                self.counted.sends += 1
                if sent < 0:
                    if not ff_would_block():
                        return self._doom(slot, CONNECTION_LOST)
                    break
            else:
                if conn.flags & PAUSED:
                    break
                self._write(
                    slot,
                    PyBytes_FromStringAndSize(<const char *>node.block.data + node.offset, left),
                )
                if conn.queue == NULL:
                    break       # it failed, and who heard of that ended the connection
                sent = left
            conn.queue.progress_at = <uint32_t>self.now_ms
            self.counted.bytes_out += <size_t>sent
            if <uint32_t>sent < left:
                node.offset += <uint32_t>sent
                conn.queue.bytes -= <uint32_t>sent
                if node.messages > 1:   # one may be the rest of a cut frame: nothing to walk along
                    left = frames_after(node.block, node.offset)
                    conn.queue.messages -= node.messages - left
                    node.messages = left
                break
            queue_pop(conn)
        if conn.queue == NULL:
            if conn.fd >= 0:
                self._watch(slot)
            if conn.state == CLOSING:
                self._end_write(slot, False)
            elif conn.assembly != NULL and conn.assembly.pong_owed:
                conn.assembly.pong_owed = False
                self._note_own(slot, OP_PONG, conn.assembly.pong, conn.assembly.pong_size)
                self._tidy(conn)
        return 0

    @cython.final
    cdef int _end_write(self, uint32_t slot, bint peer_is_done) except -1:
        # Only the writing half: closing while the peer's octets are still unread would make the
        # kernel send a reset, which can destroy our Close frame on the other side.
        cdef Conn *conn = &self.conns[slot]
        if conn.flags & WRITE_ENDED:
            return 0
        conn.flags |= WRITE_ENDED
        if conn.fd >= 0:
            c_shutdown(conn.fd, SHUT_WR)
        elif conn.link != NULL:
            transport = (<object>conn.link).transport
            if transport.can_write_eof():
                transport.write_eof()
            elif peer_is_done:
                transport.close()
        return 0
