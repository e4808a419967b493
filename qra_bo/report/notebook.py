"""HTML fragments for notebooks: small tables for the ``_repr_html_`` of results and plans."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from qra_bo.report.text import runs, short_names, signed, size


def html_table(columns: Sequence[str], rows: Iterable[Sequence[object]], caption: str = "") -> str:
    """A plain HTML table; every text is escaped."""
    def line(cells: Iterable[object], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    head = f"<caption>{escape(caption)}</caption>" if caption else ""
    body = "".join(line(row, "td") for row in rows)
    return f"<table>{head}<thead>{line(columns, 'th')}</thead><tbody>{body}</tbody></table>"


def allocation_rows(best: Mapping[str, Any]) -> list[tuple[str, object, str, object]]:
    """(units, bits, format, rank) of the contents of ``best.json``; neighbouring equal units share a row."""
    names = [f.get("name", f"{f['backend']} {f['bits']}-bit") for f in best["formats"]]
    rows = list(zip(best["bits"], names, best["ranks"], strict=True))
    return [(units, *row) for units, row in runs(short_names(best["units"]), rows)]


def allocation_html(best: Mapping[str, Any]) -> str:
    """The delivered allocation of ``best.json`` as a table, with model, loss and memory in its caption."""
    versus, memory = best.get("versus_best_uniform"), best["memory"]
    text = f"{best['model']}: loss {best['loss']:.4f}"
    if versus:
        text += (f", {signed(versus['mean'])} nats against the best uniform baseline (95 % CI {signed(versus['low'])} "
                 f"to {signed(versus['high'])})")
    text += f"; {size(memory['predicted_bytes'])} of {size(memory['budget_bytes'])} ({memory['scope']})"
    return html_table(("units", "bits", "format", "rank"), allocation_rows(best), text)


def allocation_text(best: Mapping[str, Any]) -> str:
    """One line for a ``repr``: kind, model, loss, predicted memory."""
    return (f"{best['winner_kind']} allocation of {best['model']}, loss {best['loss']:.4f}, "
            f"{size(best['memory']['predicted_bytes'])} of {size(best['memory']['budget_bytes'])}")
