# Room membership: four slots in place, then a sorted array, above BITSET_ABOVE members a bitset, so
# that memory follows the members and not rooms x slots. Iteration is always in ascending slot order.

cdef uint32_t BITSET_ABOVE = 4096
cdef uint32_t ARRAY_BELOW = 2048


cdef inline uint16_t *room_slots(Room *room) noexcept:
    # Of a room that is no bitset.
    return &room.slots.few[0] if room.capacity <= FEW_MEMBERS else room.slots.many


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
    if room.capacity == IN_BITS:
        return (room.slots.bits[slot >> 6] >> (slot & 63)) & 1
    at = room_lower_bound(room, slot)
    return at < room.count and room_slots(room)[at] == slot


cdef int room_to_bits(Room *room, uint32_t words) except -1:
    cdef uint64_t *bits = <uint64_t *>calloc(words, sizeof(uint64_t))
    cdef uint16_t *slots = room_slots(room)
    cdef uint32_t i
    cdef uint16_t slot
    if bits == NULL:
        raise MemoryError("no memory for a room's member set")
    for i in range(room.count):
        slot = slots[i]
        bits[slot >> 6] |= (<uint64_t>1) << (slot & 63)
    if room.capacity > FEW_MEMBERS:
        free(room.slots.many)
    room.slots.bits = bits
    room.capacity = IN_BITS
    return 0


cdef int room_to_array(Room *room, uint32_t words) except -1:
    cdef uint32_t capacity = ARRAY_BELOW * 2, word, n = 0
    cdef uint64_t left
    cdef uint16_t *members = <uint16_t *>malloc(capacity * sizeof(uint16_t))
    if members == NULL:
        raise MemoryError("no memory for a room's member set")
    for word in range(words):
        left = room.slots.bits[word]
        while left:
            members[n] = <uint16_t>((word << 6) + <uint32_t>__builtin_ctzll(left))
            n += 1
            left &= left - 1
    free(room.slots.bits)
    room.slots.many = members
    room.capacity = capacity
    return 0


cdef int room_add(Room *room, uint16_t slot, uint32_t words) except -1:
    # The caller has made sure that the slot is not yet a member.
    cdef uint32_t at, capacity
    cdef bint few = room.capacity <= FEW_MEMBERS
    cdef uint16_t *members
    if room.capacity != IN_BITS and room.count >= BITSET_ABOVE:
        room_to_bits(room, words)
    if room.capacity == IN_BITS:
        room.slots.bits[slot >> 6] |= (<uint64_t>1) << (slot & 63)
        room.count += 1
        return 0
    if room.count == room.capacity:
        capacity = room.capacity * 2
        members = <uint16_t *>realloc(
            NULL if few else room.slots.many, capacity * sizeof(uint16_t)
        )
        if members == NULL:
            raise MemoryError("no memory for a room's member set")
        if few:
            memcpy(members, room.slots.few, sizeof(room.slots.few))
        room.slots.many = members
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
    if room.capacity == IN_BITS:
        room.slots.bits[slot >> 6] &= ~((<uint64_t>1) << (slot & 63))
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
    if room.capacity == IN_BITS:
        free(room.slots.bits)
    elif room.capacity > FEW_MEMBERS:
        free(room.slots.many)
    room.count = 0
    room.capacity = FEW_MEMBERS
