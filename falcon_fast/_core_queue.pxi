# The out-queue: what the kernel would not take yet. A node refers to a block of whole frames from an
# offset on; members that are slow at the same tick share the block.

cdef Block *block_new(const uint8_t *data, size_t size) except NULL:
    cdef Block *block = <Block *>malloc(sizeof(Block) + size)
    if block == NULL:
        raise MemoryError("no memory for an out-queue")
    block.references = 1
    block.size = <uint32_t>size
    memcpy(block.data, data, size)
    return block


cdef inline void block_release(Block *block) noexcept:
    block.references -= 1
    if block.references == 0:
        free(block)


cdef int queue_push(Conn *conn, Block *block, uint32_t offset, uint32_t messages) except -1:
    cdef Queued *node = <Queued *>malloc(sizeof(Queued))
    if node == NULL:
        raise MemoryError("no memory for an out-queue")
    node.next = NULL
    node.block = block
    node.offset = offset
    node.messages = messages
    block.references += 1
    if conn.queue_tail == NULL:
        conn.queue_head = node
    else:
        conn.queue_tail.next = node
    conn.queue_tail = node
    conn.queue_bytes += block.size - offset
    conn.queue_messages += messages
    return 0


cdef void queue_pop(Conn *conn) noexcept:
    cdef Queued *node = conn.queue_head
    conn.queue_head = node.next
    if conn.queue_head == NULL:
        conn.queue_tail = NULL
    conn.queue_bytes -= node.block.size - node.offset
    conn.queue_messages -= node.messages
    block_release(node.block)
    free(node)


cdef void queue_clear(Conn *conn) noexcept:
    while conn.queue_head != NULL:
        queue_pop(conn)


cdef size_t frame_size(const uint8_t *frame) noexcept:
    # A frame of our own making: unmasked, its length well formed.
    cdef uint64_t size = frame[1]
    cdef int i
    if size < 126:
        return 2 + size
    if size == 126:
        return 4 + ((<size_t>frame[2] << 8) | frame[3])
    size = 0
    for i in range(2, 10):
        size = (size << 8) | frame[i]
    return 10 + size


cdef uint32_t frames_after(Block *block, uint32_t offset) noexcept:
    # How many frames of a block are not wholly in front of an offset.
    cdef size_t end = 0
    cdef uint32_t frames = 0
    while end < block.size:
        end += frame_size(block.data + end)
        frames += end > offset
    return frames


cdef int queue_cut(Conn *conn) except -1:
    # Keep only the rest of a frame that the peer has already begun to receive: what follows it on
    # the wire must be a frame's first octet.
    cdef Queued *node = conn.queue_head
    cdef Block *rest
    cdef size_t end = 0
    cdef uint32_t offset
    if node == NULL:
        return 0
    offset = node.offset
    while end < offset:
        end += frame_size(node.block.data + end)
    if end == offset:
        queue_clear(conn)
        return 0
    rest = block_new(node.block.data + offset, end - offset)
    queue_clear(conn)
    queue_push(conn, rest, 0, 1)
    block_release(rest)
    return 0
