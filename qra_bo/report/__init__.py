"""Everything that people see of a run: terminal text, live view, report page and figures.

``data.ReportData`` is the one input; ``story`` and ``notes`` turn it into sentences, ``tables`` and
``html`` render these. Names load on first use, so that a listing needs no matplotlib.
"""

from qra_bo.utils.lazy import lazy_names

_HOMES = {"load_run": "data", "PLOTS": "plots"}
__all__ = sorted(_HOMES)
__getattr__ = lazy_names(__name__, _HOMES)
