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
    cdef Queue *queue = conn.queue
    cdef Queued *node = <Queued *>malloc(sizeof(Queued))
    if node == NULL:
        raise MemoryError("no memory for an out-queue")
    if queue == NULL:
        queue = <Queue *>calloc(1, sizeof(Queue))
        if queue == NULL:
            free(node)
            raise MemoryError("no memory for an out-queue")
        conn.queue = queue
    node.next = NULL
    node.block = block
    node.offset = offset
    node.messages = messages
    block.references += 1
    if queue.tail == NULL:
        queue.head = node
    else:
        queue.tail.next = node
    queue.tail = node
    queue.bytes += block.size - offset
    queue.messages += messages
    return 0


cdef void queue_pop(Conn *conn) noexcept:
    cdef Queue *queue = conn.queue
    cdef Queued *node = queue.head
    queue.head = node.next
    queue.bytes -= node.block.size - node.offset
    queue.messages -= node.messages
    block_release(node.block)
    free(node)
    if queue.head == NULL:
        free(queue)
        conn.queue = NULL


cdef void queue_clear(Conn *conn) noexcept:
    while conn.queue != NULL:
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
    cdef Queued *node
    cdef Block *rest
    cdef size_t end = 0
    cdef uint32_t offset, progress_at, backlog
    if conn.queue == NULL:
        return 0
    node = conn.queue.head
    progress_at, backlog = conn.queue.progress_at, conn.queue.transport_backlog
    offset = node.offset
    while end < offset:
        end += frame_size(node.block.data + end)
    if end == offset:
        queue_clear(conn)
        return 0
    rest = block_new(node.block.data + offset, end - offset)
    queue_clear(conn)
    try:
        queue_push(conn, rest, 0, 1)
    finally:
        block_release(rest)
    conn.queue.progress_at, conn.queue.transport_backlog = progress_at, backlog
    return 0
