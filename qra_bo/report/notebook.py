"""Text and HTML of a result for notebooks: what ``repr`` and ``_repr_html_`` of ``Result`` show."""

from collections.abc import Mapping
from typing import Any

from qra_bo.report.text import runs, short_names, signed, size
from qra_bo.utils.html import html_table


def allocation_rows(best: Mapping[str, Any]) -> list[tuple[str, object, str, object]]:
    """(units, bits, format, rank) of the contents of ``best.json``; neighbouring equal units share a row."""
    names = [f.get("name", f"{f['backend']} {f['bits']}-bit") for f in best["formats"]]
    rows = list(zip(best["bits"], names, best["ranks"], strict=True))
    return [(units, *row) for units, row in runs(short_names(best["units"]), rows)]


def allocation_text(best: Mapping[str, Any]) -> str:
    """One line: kind, model, loss, difference to the best uniform baseline where confirmed, predicted memory."""
    versus, memory = best.get("versus_best_uniform"), best["memory"]
    difference = ""
    if versus:
        difference = (f", {signed(versus['mean'])} nats against the best uniform baseline (95 % CI "
                      f"{signed(versus['low'])} to {signed(versus['high'])})")
    return (f"{best['winner_kind']} allocation of {best['model']}: loss {best['loss']:.4f}{difference}; "
            f"{size(memory['predicted_bytes'])} of {size(memory['budget_bytes'])} ({memory['scope']})")


def allocation_html(best: Mapping[str, Any]) -> str:
    """A table of bits and ranks by unit, under the line of ``allocation_text``."""
    return html_table(allocation_text(best), ("units", "bits", "format", "rank"), allocation_rows(best))
