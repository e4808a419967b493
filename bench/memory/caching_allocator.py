"""Model of PyTorch's CUDA caching allocator: bytes that it reserves for a sequence of allocations on one stream.

Every rule is that of ``c10/cuda/CUDACachingAllocator.cpp`` (PyTorch 2.8 and later; constants ``kMinBlockSize``,
``kSmallSize``, ``kSmallBuffer``, ``kLargeBuffer``, ``kMinLargeAlloc``, ``kRoundLarge``), with its default settings:

- ``round_size``: a multiple of 512 bytes. ``get_pool``: up to 1 MiB from the small pool.
- ``get_free_block``: the smallest free block of the pool that is large enough, of equals the one with the lowest
  address (``BlockComparatorSize``). With expandable segments a block before unmapped memory counts with the size that
  it can grow to, so that it comes last.
- ``get_allocation_size``: without a free block a segment of 2 MiB (small pool), 20 MiB (below 10 MiB), or the size
  rounded up to 2 MiB is reserved.
- ``should_split``: the rest of a block becomes a free block of its own: from 512 bytes in the small pool and with
  expandable segments, else above 1 MiB.
- ``free_block`` and ``try_merge_blocks``: a freed block joins its free neighbours of the same segment.
- ``try_allocate_expandable_block`` and ``map_block``: one segment a pool grows at its end, in steps of 2 MiB (small
  pool) and 20 MiB. A free block at its end is extended.
- ``release_blocks`` and ``unmap_block`` (``torch.cuda.empty_cache``): segments without a live block are returned; of
  an expandable segment every whole step within a free block.

Not modelled: several streams, graphs, private pools, and retries after ``cudaMalloc`` fails.
"""

from bisect import bisect_left, insort
from dataclasses import dataclass, field

MIN_BLOCK = 512
SMALL_SIZE = 1 << 20
SMALL_BUFFER = 2 << 20
LARGE_BUFFER = 20 << 20
MIN_LARGE = 10 << 20
ROUND_LARGE = 2 << 20
ADDRESS_SPACE = LARGE_BUFFER << 26
"""Distance between segments; an expandable one may grow to half of it. Whole steps lie at multiples of their size."""


def round_up(size: int, step: int) -> int:
    """Return the least multiple of ``step`` that is not below ``size``."""
    return -(-size // step) * step


@dataclass(slots=True, eq=False)
class Block:
    """A part of a segment: live, free, or unmapped (expandable segments only)."""

    address: int
    size: int
    free: bool = True
    mapped: bool = True
    before: "Block | None" = None
    after: "Block | None" = None

    @property
    def key(self) -> tuple[int, int]:
        """Place among the free blocks of a pool."""
        return self.size, self.address

    @property
    def reach(self) -> int:
        """Size that the block can grow to."""
        return self.size + (self.after.size if self.after is not None and not self.after.mapped else 0)


@dataclass(slots=True)
class Pool:
    """Free blocks of the small or of the large pool, by size, and the unmapped ends of its expandable segments."""

    small: bool
    keys: list[tuple[int, int]] = field(default_factory=list)
    blocks: dict[tuple[int, int], Block] = field(default_factory=dict)
    unmapped: list[Block] = field(default_factory=list)

    def add(self, block: Block) -> None:
        insort(self.keys, block.key)
        self.blocks[block.key] = block

    def put_back(self, block: Block) -> None:
        """Add a free block, joined with its free neighbours."""
        for other in (block.before, block.after):
            if other is not None and other.free and other.mapped:
                self.remove(other)
                _join(block, other)
        self.add(block)

    def remove(self, block: Block) -> None:
        del self.keys[bisect_left(self.keys, block.key)], self.blocks[block.key]


class CachingAllocator:
    """Allocator of one device.

    Args:
        expandable: Whether segments are expandable (``expandable_segments:True``).

    Attributes:
        allocated: Bytes of live blocks.
        reserved: Bytes taken from the device.
        peak_reserved: Largest value of ``reserved``.
    """

    def __init__(self, expandable: bool) -> None:
        self.expandable = expandable
        self.allocated = self.reserved = self.peak_reserved = 0
        self._pools = Pool(True), Pool(False)
        self._segments = 0

    def malloc(self, size: int) -> Block:
        """Return a live block of at least ``size`` bytes."""
        size = max(MIN_BLOCK, round_up(size, MIN_BLOCK))
        pool = self._pools[size > SMALL_SIZE]
        block = self._best(pool, size)
        if block is not None:
            pool.remove(block)
        else:
            block = self._grown(pool, size) if self.expandable else self._segment(size)
        if block.size - size >= MIN_BLOCK if pool.small or self.expandable else block.size - size > SMALL_SIZE:
            pool.add(self._split(block, size))
        block.free = False
        self.allocated += block.size
        return block

    def free(self, block: Block) -> None:
        """Return a live block to its pool."""
        pool = self._pools[block.size > SMALL_SIZE]  # blocks of the small pool are always cut to the request
        self.allocated -= block.size
        block.free = True
        pool.put_back(block)

    def empty_cache(self) -> None:
        """Return memory without live blocks to the device."""
        for pool in self._pools:
            for block in list(pool.blocks.values()):
                if self.expandable:
                    self._unmap(pool, block)
                elif block.before is None and block.after is None:
                    pool.remove(block)
                    self.reserved -= block.size

    def reset_peak(self) -> None:
        """Begin to count the peak anew."""
        self.peak_reserved = self.reserved

    def _best(self, pool: Pool, size: int) -> Block | None:
        at = bisect_left(pool.keys, (size, -1))
        if at == len(pool.keys):
            return None
        found = pool.blocks[pool.keys[at]]
        while self.expandable and at + 1 < len(pool.keys):
            following = pool.blocks[pool.keys[at + 1]]
            if following.reach >= found.reach:
                break
            found, at = following, at + 1
        return found

    def _segment(self, size: int) -> Block:
        total = SMALL_BUFFER if size <= SMALL_SIZE else LARGE_BUFFER if size < MIN_LARGE else \
            round_up(size, ROUND_LARGE)
        self._reserve(total)
        self._segments += 1
        return Block(self._segments * ADDRESS_SPACE, total)

    def _grown(self, pool: Pool, size: int) -> Block:
        """Return a free block of at least ``size`` bytes, out of the pool, with newly mapped memory at its end."""
        candidate = next((b.before if b.before is not None and b.before.free else b for b in pool.unmapped
                          if _room(b, size)), None)
        if candidate is None:
            self._segments += 1
            candidate = Block(self._segments * ADDRESS_SPACE, ADDRESS_SPACE // 2, mapped=False)
            pool.unmapped.append(candidate)
        if not candidate.mapped:
            self._map(pool, candidate, min(candidate.size, size))
        while candidate.size < size:
            assert candidate.after is not None
            following = candidate.after
            self._map(pool, following, min(size - candidate.size, following.size))
            candidate = following
        pool.remove(candidate)
        return candidate

    def _map(self, pool: Pool, block: Block, size: int) -> None:
        size = min(block.size, round_up(size, SMALL_BUFFER if pool.small else LARGE_BUFFER))
        pool.unmapped.remove(block)
        if size < block.size:
            pool.unmapped.append(self._split(block, size, mapped=False))
            pool.unmapped.sort(key=lambda b: b.address)
        block.mapped = True
        pool.put_back(block)
        self._reserve(size)

    def _unmap(self, pool: Pool, block: Block) -> None:
        """Return the whole steps within a free block of an expandable segment."""
        step = SMALL_BUFFER if pool.small else LARGE_BUFFER
        first = round_up(block.address, step)
        last = (block.address + block.size) // step * step
        if last <= first:
            return
        pool.remove(block)
        self.reserved -= last - first
        if last < block.address + block.size:
            pool.add(self._split(block, last - block.address))
        if first > block.address:
            rest = self._split(block, first - block.address)
            pool.add(block)
            block = rest
        block.mapped = False
        for other in (block.before, block.after):
            if other is not None and not other.mapped:
                pool.unmapped.remove(other)
                _join(block, other)
        pool.unmapped.append(block)
        pool.unmapped.sort(key=lambda b: b.address)

    def _split(self, block: Block, size: int, mapped: bool = True) -> Block:
        """Cut ``block`` to ``size`` bytes and return the rest, which is free and in no pool."""
        rest = Block(block.address + size, block.size - size, True, mapped, block, block.after)
        if block.after is not None:
            block.after.before = rest
        block.after, block.size = rest, size
        return rest

    def _reserve(self, size: int) -> None:
        self.reserved += size
        self.peak_reserved = max(self.peak_reserved, self.reserved)


def _join(block: Block, other: Block) -> None:
    """Make a neighbour part of ``block``."""
    if other is block.before:
        block.address, block.before = other.address, other.before
        if block.before is not None:
            block.before.after = block
    else:
        block.after = other.after
        if block.after is not None:
            block.after.before = block
    block.size += other.size


def _room(block: Block, size: int) -> bool:
    """Whether ``block``, the free block before it and the free and unmapped ones after it have ``size`` bytes."""
    at = block.before if block.before is not None and block.before.free else block
    found = 0
    while found < size and at is not None and at.free:
        found, at = found + at.size, at.after
    return found >= size
