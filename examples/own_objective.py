"""Minimise an objective of your own: six services share 64 GB, each chooses a cache size and a number of workers."""

import numpy as np

import qra_bo

cache_gb, workers = np.array([1, 2, 4, 8]), np.array([1, 2, 3, 4, 6, 8])
load = np.array([9.0, 1.0, 4.0, 2.0, 7.0, 3.0])
names = ("search", "login", "cart", "mail", "feed", "stats")
gigabytes = cache_gb[:, None] + workers[None, :]  # 4 cache sizes x 6 numbers of workers, alike for every service
problem = qra_bo.OrdinalProblem(names, np.repeat(gigabytes[None], 6, axis=0), budget=64,
                                harm=load[:, None] / cache_gb,  # guess: small caches harm busy services
                                gain=load[:, None] * np.log1p(workers))  # guess: workers help them


def latency(choice: tuple[tuple[int, ...], tuple[int, ...]]) -> float:
    """Stands for a measurement: the latency of all services at these levels of both ladders."""
    cache, worker = cache_gb[list(choice[0])], workers[list(choice[1])]
    return float((load**1.2 / np.sqrt(cache * worker)).sum())


best = qra_bo.search(objective=latency, problem=problem, evaluations=25, seed=0)
assert best is not None
(caches, counts), value = best
for name, cache, count in zip(names, caches, counts, strict=True):
    print(f"{name}: {cache_gb[cache]} GB, {workers[count]} workers")
print(f"latency {value:.3f}")
