"""Every file that a real run of ``tiny`` and its cache wrote, damaged in every way, under every use of the run.

A damaged run that is loaded, resumed, reported or exported has to give a right result or a clear refusal. The list of
files is what the run really wrote.
"""

import warnings
from functools import partial

from bench.faults.log import Session
from tests.damage import DAMAGES
from tests.faults.real import RealRun
from tests.faults.sweep import cases, problem_of, problem_with_cache

SHORT = 20
"""Cases of the short form."""


def provoke(session: Session) -> bool:
    """Damage the files of one run and return whether every case ended well."""
    warnings.simplefilter("ignore")
    run = RealRun(session.folder / "real")
    every = [(str(case), {"damage": case.damage, "use": case.use}, partial(problem_of, run, case))
             for case in cases(run)]
    if not session.short:
        every += [(f"{damage}, the cache", {"damage": damage, "use": "search with the cache"},
                   partial(problem_with_cache, run, damage)) for damage in DAMAGES]
    return session.sweep("fault_corruption", "damages to one file of a real run that ended in a right result or a "
                         "clear refusal", every, SHORT if session.short else None)
