"""``table1.md``: the table limit by limit, and its summary in words."""

from collections.abc import Mapping
from typing import Any

from bench.table1.cells import OWN
from bench.table1.results import proxy_label, qra_bo_among
from qra_bo.memory.budget import format_size
from qra_bo.study.intervals import LEAST_SEEDS, LEVEL
from qra_bo.utils.formatting import DASH, MINUS, number, signed

HEAD = ("method", "test loss", "SE", "seeds", "bits", "+ metadata", "rank", "predicted", "measured", "search steps",
        "steps", "gap closed", f"qra_bo {MINUS} row", "all alike", "acc.", "reported acc.")
Row = Mapping[str, Any]


def render(table: Mapping[str, Any]) -> str:
    """Return the contents of the file."""
    label = proxy_label(table)
    lines = [f"# Methods at equal conditions: {table['model']} on {table['data']}", ""]
    if label is not None:
        lines += [f"**{label}.**", ""]
    lines += [f"Loss on the test split ({table['unit']}, lower is better) after {table['steps']} steps, mean and "
              "standard error over training seeds that no search used. Every row has the same data, trainer, "
              "steps, seeds, memory model, and the same rule and number of trials for its learning rate. *Gap "
              f"closed*: (QLoRA {MINUS} row) / (QLoRA {MINUS} LoRA-16), paired, with its {LEVEL:.0%} interval. "
              f"*qra_bo {MINUS} row*: qra_bo with finer bits (5 and 6 too) and codes by GPTQ if there is one, over "
              "common seeds; *all alike*: qra_bo with the row's bits and choice of codes; "
              f"negative is in favour of qra_bo; **bold** where the interval excludes 0 over at least {LEAST_SEEDS} "
              "seeds. Steps of the search are its cost, learning-rate trials included, in steps of training. "
              "*Acc.*: mean accuracy (%) of the first seed's model at the tasks of `table1.tasks`. *Reported*: "
              "average accuracy (%) that a public summary of the paper gives for LLaMA-3.1-8B: another model, "
              "data and metric.", ""]
    if not table["complete"]:
        lines += [f"Not complete: {len(table['missing'])} rows are missing ({', '.join(table['missing'][:4])}"
                  f"{', ...' if len(table['missing']) > 4 else ''}).", ""]
    names = dict.fromkeys(r["limit"] for r in table["rows"])
    for name in names:
        rows = [r for r in table["rows"] if r["limit"] == name]
        lines += [f"## {_title(name, table)}", "", *_markdown([r for r in rows if not r["why"]]), ""]
        lines += [f"- {r['title']}: no result, {r['why']}" for r in rows if r["why"]]
        lines += [f"- {r['title']}: {r['note']}" for r in rows if r["note"]]
        lines += [""]
    notes = dict.fromkeys(r["gap_note"] for r in table["rows"] if r["gap_note"])
    lines += [f"- gap closed: {note}" for note in notes]
    lines += ["", *_provenance(table)]
    return "\n".join(lines).replace("\n\n\n", "\n\n").rstrip() + "\n"


def _title(name: str, table: Mapping[str, Any]) -> str:
    if name == OWN.name:
        return "Without a limit on memory"
    limit = next(one for one in table["limits"] if one["name"] == name)
    if limit["budget_bytes"] is None:
        return "Search without a limit"
    bits = limit["max_average_bits"]
    return (f"Within {format_size(limit['budget_bytes'])} ({limit['scope']} memory, {name.split()[1]})"
            f"{'' if bits is None else f' and {bits:g} bits on average'}")


def _markdown(rows: list[Row]) -> list[str]:
    if not rows:
        return []
    cells = [HEAD, *(tuple(_cells(r)) for r in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = ["| " + " | ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)) + " |" for line in cells]
    return [lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]]


def _cells(r: Row) -> list[str]:
    figures = r["reported"]
    return [r["title"], number(r["mean"]), number(r["se"]), str(r["seeds"]), number(r["avg_bits"], 2),
            number(r["metadata_bits"], 2), number(r["avg_rank"], 2), format_size(r["predicted_bytes"]),
            DASH if r["measured_bytes"] is None else format_size(r["measured_bytes"]), f"{r['search_steps']:,}",
            str(r["train_steps"]), gap_text(r), versus_text(r["qra_bo_minus_row"]),
            versus_text(r["same_codes_minus_row"]),
            DASH if r["accuracy"] is None else f"{100 * r['accuracy']:.2f}",
            DASH if figures is None else f"{figures['value']:.2f} *reported*"]


def gap_text(r: Row) -> str:
    """Return ``54 % [40, 68]``, or ``unresolved``."""
    if r["gap_closed"] is None:
        return "unresolved"
    return f"{100 * r['gap_closed']:.0f} % [{100 * r['gap_low']:.0f}, {100 * r['gap_high']:.0f}]".replace("-", MINUS)


def versus_text(v: Mapping[str, Any] | None) -> str:
    """Return ``−0.0120 [−0.0180, −0.0060]``, bold if it is decided."""
    if v is None:
        return DASH
    text = f"{signed(v['mean'])} [{signed(v['low'])}, {signed(v['high'])}]"
    return f"**{text}**" if v["verdict"] != "undecided" else text


def summary(table: Mapping[str, Any]) -> list[str]:
    """Return one line a limit on our row; the first line labels a simulation."""
    label = proxy_label(table)
    lines = [] if label is None else [label.upper()]
    for limit in table["limits"]:
        rows = [r for r in table["rows"] if r["limit"] == limit["name"] and not r["why"]]
        mine = qra_bo_among(r["method"] for r in rows)
        if mine is None:
            continue
        own = next(r for r in rows if r["method"] == mine)
        others = [r for r in rows if r["qra_bo_minus_row"] is not None]
        better = [r for r in others if r["qra_bo_minus_row"]["verdict"] == "better"]
        alike = [r["same_codes_minus_row"]["verdict"] for r in rows if r["same_codes_minus_row"] is not None]
        lines.append(f"{limit['name']}: {own['title']} {number(own['mean'])}, gap closed {gap_text(own)}; "
                     f"better than {len(better)} of {len(others)} other rows within it"
                     + (f"; with codes as theirs, than {alike.count('better')} of {len(alike)}" if alike else ""))
    return lines


def _provenance(table: Mapping[str, Any]) -> list[str]:
    p = table["provenance"]
    packages = ", ".join(f"{k} {v}" for k, v in (p.get("packages") or {}).items())
    return [f"qra_bo {p.get('version')} at {p.get('git')}, seed {table['seed']}, effort={table['effort']}, table1="
            f"{table['table']}; {p.get('device')}, {p.get('dtype')}, {p.get('threads')} threads; {packages}; data "
            f"{str(p.get('data_sha256'))[:12]}, weights {str(p.get('model_sha256'))[:12]}."]
