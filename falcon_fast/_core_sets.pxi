# Room membership: four slots in place, then a sorted array, above BITSET_ABOVE members a bitset, so
# that memory follows the members and not rooms x slots. Iteration is always in ascending slot order.

cdef uint32_t BITSET_ABOVE = 4096
cdef uint32_t ARRAY_BELOW = 2048


cdef inline uint16_t *room_slots(Room *room) noexcept:
    if room.capacity <= 4:
        return room.few
    return room.members


cdef uint32_t room_lower_bound(Room *room, uint16_t slot) noexcept:
    cdef uint16_t *slots = room_slots(room)
    cdef uint32_t low = 0, high = room.count, middle
    while low < high:
        middle = (low + high) >> 1
        if slots[middle] < slot:
            low = middle + 1
        else:
            high = middle
    return low


cdef bint room_has(Room *room, uint16_t slot) noexcept:
    cdef uint32_t at
    if room.bits != NULL:
        return (room.bits[slot >> 6] >> (slot & 63)) & 1
    at = room_lower_bound(room, slot)
    return at < room.count and room_slots(room)[at] == slot


cdef int room_to_bits(Room *room, uint32_t words) except -1:
    cdef uint64_t *bits = <uint64_t *>calloc(words, sizeof(uint64_t))
    cdef uint32_t i
    cdef uint16_t slot
    if bits == NULL:
        raise MemoryError("no memory for a room's member set")
    for i in range(room.count):
        slot = room.members[i]
        bits[slot >> 6] |= (<uint64_t>1) << (slot & 63)
    free(room.members)
    room.members = NULL
    room.bits = bits
    return 0


cdef int room_to_array(Room *room, uint32_t words) except -1:
    cdef uint32_t capacity = ARRAY_BELOW * 2, word, n = 0
    cdef uint64_t left
    cdef uint16_t *members = <uint16_t *>malloc(capacity * sizeof(uint16_t))
    if members == NULL:
        raise MemoryError("no memory for a room's member set")
    for word in range(words):
        left = room.bits[word]
        while left:
            members[n] = <uint16_t>((word << 6) + <uint32_t>__builtin_ctzll(left))
            n += 1
            left &= left - 1
    free(room.bits)
    room.bits = NULL
    room.members = members
    room.capacity = capacity
    return 0


cdef int room_add(Room *room, uint16_t slot, uint32_t words) except -1:
    # The caller has made sure that the slot is not yet a member.
    cdef uint32_t at, capacity
    cdef uint16_t *members
    if room.bits == NULL and room.count >= BITSET_ABOVE:
        room_to_bits(room, words)
    if room.bits != NULL:
        room.bits[slot >> 6] |= (<uint64_t>1) << (slot & 63)
        room.count += 1
        return 0
    if room.count == room.capacity:
        capacity = room.capacity * 2
        members = <uint16_t *>realloc(
            NULL if room.capacity <= 4 else room.members, capacity * sizeof(uint16_t)
        )
        if members == NULL:
            raise MemoryError("no memory for a room's member set")
        if room.capacity <= 4:
            memcpy(members, room.few, sizeof(room.few))
        room.members = members
        room.capacity = capacity
    members = room_slots(room)
    at = room_lower_bound(room, slot)
    memmove(members + at + 1, members + at, (room.count - at) * sizeof(uint16_t))
    members[at] = slot
    room.count += 1
    return 0


cdef int room_remove(Room *room, uint16_t slot, uint32_t words) except -1:
    # The caller has made sure that the slot is a member.
    cdef uint32_t at
    cdef uint16_t *members
    if room.bits != NULL:
        room.bits[slot >> 6] &= ~((<uint64_t>1) << (slot & 63))
        room.count -= 1
        if room.count < ARRAY_BELOW:
            room_to_array(room, words)
        return 0
    members = room_slots(room)
    at = room_lower_bound(room, slot)
    room.count -= 1
    memmove(members + at, members + at + 1, (room.count - at) * sizeof(uint16_t))
    if room.count == 0:
        room_clear(room)
    return 0


cdef void room_clear(Room *room) noexcept:
    if room.capacity > 4:
        free(room.members)
    free(room.bits)
    room.members = NULL
    room.bits = NULL
    room.count = 0
    room.capacity = 4
