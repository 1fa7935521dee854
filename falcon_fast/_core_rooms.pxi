# Rooms and who is in them. What is pending for a room is sent before its members change.

cdef class _Rooms(_Output):
    """Rooms and their members."""

    @cython.final
    cdef uint32_t _make_room(self) except? 0xffffffff:
        cdef Room *rooms
        cdef Room *room
        cdef uint32_t capacity
        if self.room_used == self.room_capacity:
            capacity = max(self.room_capacity * 2, 64)
            rooms = <Room *>realloc(self.rooms, capacity * sizeof(Room))
            if rooms == NULL:
                raise MemoryError("no memory for another room")
            self.rooms = rooms
            self.room_capacity = capacity
        room = &self.rooms[self.room_used]
        room.count = 0
        room.capacity = FEW_MEMBERS
        room.first_entry = room.last_entry = NO_ENTRY
        self.room_used += 1
        return self.room_used - 1

    @cython.final
    cdef Room *_room(self, object number) except NULL:
        cdef int64_t index = number
        if not 0 < index < self.room_used or self.rooms[index].first_entry == NOT_OPEN:
            raise ValueError(f"there is no room {number}")
        return &self.rooms[index]

    @cython.final
    cdef int _enter(self, uint32_t slot, uint32_t number) except -1:
        if self.rooms[number].first_entry >= 0:
            # What was said before must not reach the newcomer: it gets its own earlier messages
            # now, and only later ones when the tick ends.
            self._flush_one(slot)
        return room_add(&self.rooms[number], <uint16_t>slot, self.words)

    @cython.final
    cdef int _unlist(self, uint32_t slot, uint32_t number) except -1:
        return room_remove(&self.rooms[number], <uint16_t>slot, self.words)

    @cython.final
    cdef list _owners(self, Room *room):
        cdef list found = []
        cdef uint32_t i, word
        cdef uint64_t left
        cdef uint16_t *slots
        if room.capacity == IN_BITS:
            for word in range(self.words):
                left = room.slots.bits[word]
                while left:
                    i = (word << 6) + <uint32_t>__builtin_ctzll(left)
                    left &= left - 1
                    found.append(<object>self.conns[i].owner)
        else:
            slots = room_slots(room)
            for i in range(room.count):
                found.append(<object>self.conns[slots[i]].owner)
        return found
