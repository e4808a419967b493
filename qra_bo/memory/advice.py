"""Advice on a budget: whether it limits anything, whether mixing pays, and what spare bytes do. No torch."""

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from qra_bo.memory.budget import format_size, smallest, uniform_bytes
from qra_bo.memory.embeddings import packable_widths
from qra_bo.memory.model import MemoryModel
from qra_bo.memory.optimizers import shrinking_ranks
from qra_bo.space import Allocation, SearchSpace, StorageFormat

NOTHING_BINDS, RANKS, BITS, MIXING_PAYS, NOTHING_FITS = "nothing binds", "ranks", "bits", "mixing pays", "nothing fits"
"""Regions of a budget, from generous to too small."""
FOUR_BITS = 4
"""Width from which a uniform choice has been about as good as any mix (``docs/reference/limits.md``)."""
JUST = 5
"""Per cent of a budget by which a choice just fails to fit."""
MOST_BATCH = 1024
"""Most sequences of a batch that is priced."""


@dataclass(frozen=True, slots=True)
class Advice:
    """What to expect of one budget.

    Args:
        region: One of the regions above.
        sentence: The same for people, with the bytes that decide.
        offer: Where nothing binds, the keys and values by which the spare bytes save passes of a step.
        offered: The same as a sentence; empty where there are none.
    """

    region: str
    sentence: str
    offer: Mapping[str, str] = field(default_factory=dict)
    offered: str = ""


def advice_on(memory: MemoryModel, space: SearchSpace, size: int, *, most_bits: float | None = None) -> Advice:
    """Return advice on a budget of ``size`` bytes. Raises ``SpaceError`` if a format can't store a matrix.

    Args:
        memory: Decoder, trainer and scope.
        space: Units and ladders.
        size: Bytes of the budget.
        most_bits: Limit on average code bits; ``None``: none.
    """
    top, wide = space.ranks[-1], space.widest
    allowed = within_average(space, most_bits)
    if wide in allowed and (need := uniform_bytes(memory, space, wide, top)) <= size:
        most = "the most that bits and ranks allow" if wide == space.formats[-1] else \
            "above which bits count for nothing"
        return Advice(NOTHING_BINDS, f"Nothing binds: {_named(wide)} with rank {top}, {most}, needs "
                       f"{format_size(need)} of {format_size(size)}. A search has nothing to trade: this choice is "
                       "trained at once, and search.force=true searches all the same.",
                       *_offer(memory, space, size))
    fitting = [f for f in allowed if largest_rank(memory, space, f, size)]  # of all ranks, not of the ladder's alone
    least, _ = smallest(memory.table(space), space)
    if not fitting or least > size:
        return Advice(NOTHING_FITS, "No uniform choice fits, and a search needs one to compare with." if least <= size
                       else f"Nothing fits: the smallest allocation needs {format_size(least)}.")
    best = fitting[-1]
    rank = largest_rank(memory, space, best, size)
    further = next((f for f in allowed if f.bits > best.bits), None)
    capped = further is None and wide not in allowed
    if not capped and (further is None or best.bits >= wide.bits):
        return Advice(RANKS, f"{_named(best).capitalize()} fits with rank {rank} of at most {top}: the budget limits "
                       "ranks alone. Expect a uniform choice to be about as good as any mix.")
    limit = f"no uniform choice of more bits keeps to max_average_bits={most_bits:g}" if further is None else \
        f"{further.bits} bits do not fit"
    if best.bits >= FOUR_BITS:
        return Advice(BITS, f"{_named(best).capitalize()} fits with rank {rank}, and {limit}. "
                       "Expect little from mixing: a uniform choice is often as good.")
    if further is not None:
        four = next((f for f in allowed if f.bits >= FOUR_BITS), further)
        over = 100 * (uniform_bytes(memory, space, four, 1) / size - 1)
        fails = "just fails to fit" if over < JUST else "does not fit"
        limit = f"{_named(four)} {fails}: with rank 1 it needs {over:.1f} % more than the budget"
    return Advice(MIXING_PAYS, f"{limit[0].upper()}{limit[1:]}. {_named(best).capitalize()} fits with rank {rank}. "
                   "Mixing can pay here; a run says whether it does.")


def with_embeddings(memory: MemoryModel, space: SearchSpace, size: int, *, most_bits: float | None = None,
                    given: Allocation | None = None) -> MemoryModel:
    """Return ``memory`` with the embedding's bits that ``embeddings=auto`` takes within ``size`` bytes.

    Of 16, 8 and 6 bits it is the width with which a uniform choice has the most bits, then the largest rank; the widest
    of equals, and the narrowest where nothing fits. So more bytes never buy fewer bits, nor a smaller rank of equal
    bits. For a ``given`` allocation of ``space`` it is the widest with which that fits. Where embeddings do not count
    (scope ``stored``) they have 16 bits.

    Raises:
        SpaceError: If a format can't store a matrix.
    """
    def worth(model: MemoryModel) -> tuple[int, int]:
        if given is not None:
            return int(model.table(space).totals(space.encode(given)[None, :])[0] <= size), 0
        fitting = best_uniform(model, space, size, most_bits)
        return (0, 0) if fitting is None else (fitting[0].bits, fitting[1])

    best, found = memory, (0, 0)
    for bits in packable_widths(memory.spec.hidden_size) if memory.scope == "peak" else ():
        model = replace(memory, shape=replace(memory.shape, embeddings=bits))
        if (value := worth(model)) > found or not any(found):
            best, found = model, value
    return best


def embeddings_note(memory: MemoryModel, space: SearchSpace, size: int, most_bits: float | None) -> str | None:
    """Return one line on what packing the embedding buys within ``size`` bytes; ``None`` where it has 16 bits."""
    bits = memory.shape.embeddings
    if bits == 16:
        return None
    best = best_uniform(replace(memory, shape=replace(memory.shape, embeddings=16)), space, size, most_bits)
    whole = "no uniform choice fits" if best is None else f"{best[0].name} fits with rank {best[1]}"
    return f"embeddings={bits} packs embedding and head; in 16 bits {whole}."


def best_uniform(memory: MemoryModel, space: SearchSpace, size: int,
                 most_bits: float | None) -> tuple[StorageFormat, int] | None:
    """Return the format of most bits that fits on every unit, and its largest rank; ``None`` where none fits."""
    ranks = ((fmt, largest_rank(memory, space, fmt, size)) for fmt in reversed(within_average(space, most_bits)))
    return next(((fmt, rank) for fmt, rank in ranks if rank), None)


def within_average(space: SearchSpace, most_bits: float | None) -> list[StorageFormat]:
    """Return the formats that a uniform choice of at most ``most_bits`` average code bits may have."""
    return [f for f in space.formats if most_bits is None or f.bits <= most_bits]


def largest_rank(memory: MemoryModel, space: SearchSpace, fmt: StorageFormat, budget: int) -> int:
    """Return the largest integer rank that fits with ``fmt`` on every unit, at most the largest of the space, else 0.

    Bytes grow with the rank but where optimiser states shrink, so that each run of ranks between is bisected alone.
    """
    def fits(rank: int) -> bool:
        return uniform_bytes(memory, space, fmt, rank) <= budget

    last = space.ranks[-1]
    sides = {side for unit in space.units for m in unit.adapted for side in (m.out_features, m.in_features)}
    for first in reversed([1, *shrinking_ranks(memory.shape.optimizer, sides)]):
        if first <= last:
            if fits(first):
                return _most(fits, last, first)
            last = first - 1
    return 0


def smallest_side(space: SearchSpace) -> int:
    """Return the largest rank that every matrix with an adapter allows."""
    return min(min(m.out_features, m.in_features) for u in space.units for m in u.adapted)


def _most(fits: Callable[[int], bool], most: int, least: int = 0) -> int:
    """Return the largest integer above ``least``, and of at most ``most``, that fits, by bisection; else ``least``."""
    return least + bisect_left(range(least + 1, most + 1), True, key=lambda n: not fits(n))


def _offer(memory: MemoryModel, space: SearchSpace, size: int) -> tuple[dict[str, str], str]:
    """Return the largest batch at the space's most bits and ranks that keeps the sequences of an optimiser step, as
    keys and in words; empty where none is larger."""
    shape, step = memory.shape, memory.shape.batch * memory.shape.accumulate

    def needs(batch: int) -> int:
        wider = replace(memory, shape=replace(shape, batch=batch))
        return uniform_bytes(wider, space, space.widest, space.ranks[-1])

    most = _most(lambda n: needs(n) <= size, min(step, MOST_BATCH))
    batch = max(n for n in range(1, most + 1) if step % n == 0)
    if memory.scope != "peak" or batch <= shape.batch:
        return {}, ""
    keys = {"train.batch": str(batch), "train.accumulate": str(step // batch)}
    return keys, f"The spare bytes save passes: {' '.join(map('='.join, keys.items()))} needs " \
                 f"{format_size(needs(batch))}."


def _named(fmt: StorageFormat) -> str:
    return f"uniform {fmt.bits} bits ({fmt.name})"
