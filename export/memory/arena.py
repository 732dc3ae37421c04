"""The memory that onnxruntime's arena touches while graphs run: its allocator, without the memory.

The arena (onnxruntime's core/framework/bfc_arena.cc) cuts a region of memory into chunks of multiples of 256 bytes. An
allocation gets the smallest free chunk that it fits in, at the lowest address; what is left over is split off if it is
large enough; neighbours that are free are joined. Pages that no allocation has covered are not resident, so what counts
is how far the region has been used, not how large it is. Here the region is as large as needed:
edge_runtime.training.engine starts the arena with what the plan takes, because chunks do not reach across regions.
"""

from bisect import bisect_left, insort

UNIT = 256
REGION_BYTES = 2**50


class Arena:
    """One region; addresses are offsets in it."""

    def __init__(self, spare_bytes: int) -> None:
        """`spare_bytes`: what is left over of a chunk is split off from this size on, and from half the chunk on."""
        self._spare = spare_bytes
        self._free = [(REGION_BYTES, 0)]  # size and address, sorted
        self._size_at = {0: REGION_BYTES}  # of free chunks, by where they begin
        self._size_before = {REGION_BYTES: REGION_BYTES}  # and by where they end
        self._chunks: dict[int, int] = {}
        self.touched_bytes = 0
        """The end of the furthest allocation so far."""

    def allocate(self, size_bytes: int) -> int:
        """Reserve a chunk and return its address."""
        size = -(-max(size_bytes, 1) // UNIT) * UNIT
        whole, address = self._free[bisect_left(self._free, (size, 0))]
        self._take(whole, address)
        if whole >= 2 * size or whole - size >= self._spare:
            self._give(whole - size, address + size)
            whole = size
        self._chunks[address] = whole
        self.touched_bytes = max(self.touched_bytes, address + size)
        return address

    def free(self, address: int) -> None:
        """Give a chunk back; free neighbours are joined to it."""
        size = self._chunks.pop(address)
        if after := self._size_at.get(address + size):
            self._take(after, address + size)
            size += after
        if before := self._size_before.get(address):
            address -= before
            self._take(before, address)
            size += before
        self._give(size, address)

    def _give(self, size: int, address: int) -> None:
        insort(self._free, (size, address))
        self._size_at[address] = self._size_before[address + size] = size

    def _take(self, size: int, address: int) -> None:
        del self._free[bisect_left(self._free, (size, address))]
        del self._size_at[address], self._size_before[address + size]
