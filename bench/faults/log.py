"""Log of provoked faults, a line each: a benchmark that is stopped resumes from there."""

import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.report import Target, publish
from bench.store import Store


class Tries(Store):
    """Tries of faults; the log of a part that is stopped is taken up again."""

    def add(self, fault: str, problem: str, in_the_middle: bool = False) -> None:
        """Note one try; ``problem`` is what went wrong, or nothing."""
        self.append("try", fault, {"problem": problem, "in_the_middle": in_the_middle})

    @property
    def tried(self) -> Counter[str]:
        """Tries by fault."""
        return Counter(t["key"] for t in self.events)

    @property
    def good(self) -> Counter[str]:
        """Of these, those after which everything was as it should be."""
        return Counter(t["key"] for t in self.events if not t["problem"])

    @property
    def last(self) -> dict[str, str]:
        """What went wrong in the last try of every fault, or nothing."""
        return {t["key"]: t["problem"] for t in self.events}

    @property
    def in_the_middle(self) -> int:
        """Good tries that hit a trial with steps behind it."""
        return sum(t["in_the_middle"] for t in self.events if not t["problem"])


@dataclass(frozen=True)
class Session:
    """One call of a part.

    Args:
        folder: For its runs; temporary.
        log: Folder of the tries.
        results: Folder of the results.
        end: Monotonic time after which no try is begun.
        seed: Of random moments and orders.
        short: Whether each kind is tried once or a few times.
    """

    folder: Path
    log: Path
    results: Path
    end: float
    seed: int
    short: bool

    @property
    def is_over(self) -> bool:
        return time.monotonic() > self.end

    def tries(self, name: str) -> Tries:
        """Return the log of a part."""
        return Tries(self.log / f"{name}.jsonl")

    def random(self, *more: int) -> np.random.Generator:
        """Return a generator that differs with what was tried before (``more``)."""
        return np.random.default_rng([self.seed, *more])

    def sweep(self, name: str, what: str, cases: Sequence[tuple[str, Mapping[str, str], Callable[[], str]]],
              most: int | None = None) -> bool:
        """Try cases in a random order until time is over, publish the counts, and return whether all were well.

        Args:
            name: Of log and results.
            what: Target that all of them meet, in words.
            cases: Name, columns of the table that it counts in, and what returns the problem of a try.
            most: Cases that are tried at most; those beyond, and with ``short`` those without time, are no failures.
        """
        tries, every = self.tries(name), list(cases)
        random.Random(self.seed).shuffle(every)
        chosen = every[:most]
        missing = [case for case in chosen if tries.last.get(case[0]) != ""]
        print(f"{len(every)} cases, {len(missing)} of them to be tried", flush=True)
        for case, _, problem_of in missing:
            if self.is_over:
                break
            problem = problem_of()
            tries.add(case, problem)
            print(f"{case}: {problem or 'well'}", flush=True)
        last = tries.last
        tried, bad = Counter[tuple[str, ...]](), Counter[tuple[str, ...]]()
        for case, columns, _ in chosen:
            tried[tuple(columns.values())] += case in last
            bad[tuple(columns.values())] += bool(last.get(case))
        keys = list(chosen[0][1])
        rows = [{**dict(zip(keys, row, strict=True)), "cases": n, "failures": bad[row]}
                for row, n in sorted(tried.items())]
        done = tried.total()
        well, wanted = done - bad.total(), done if self.short else len(chosen)
        target = Target(what, f"all {wanted}", well, well == wanted)
        publish(name, [target], rows, [*keys, "cases", "failures"], threads=1, folder=self.results)
        return target.met
