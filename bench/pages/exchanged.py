"""Tables on weights: formats, embeddings, choice of codes, adapter initialisations, exports, chat templates."""

import statistics

from bench.pages.blocks import Row, Tables, between, figure, fixed, grid, read, source, unless_missing
from qra_bo.report.text import size
from qra_bo.utils.numbers import DASH


def formats() -> str:
    """Uniform choices of the formats that were trained: one row a format, one column a text and length."""
    rows = [r for r in read("formats")["rows"] if r["measure"] == "test loss" and r["mean"] is not None]
    found = {(r["format"], r["task"], r["steps"]): r for r in rows}
    blocks = sorted({(r["task"], r["steps"]) for r in rows}, key=lambda block: (block[1], block[0]))
    kinds = {r["format"]: r for r in sorted(rows, key=lambda r: r["bits"])}
    return grid(("format, rank 8", "bits a weight", "compared with",
                 *(f"{task}, {steps} steps" for task, steps in blocks)),
                [[f"`{name}`", fixed(r["bits_a_weight"]), DASH if r["default"] == name else f"`{r['default']}`",
                  *(_loss(found.get((name, *block))) for block in blocks)] for name, r in kinds.items()]) + \
        source("formats")


def unquantised() -> str:
    """Formats of 4 bits on weights that were never quantised."""
    rows = [r for r in read("formats")["rows"] if r["measure"] != "test loss" and r.get("mean") is not None]
    columns = list(dict.fromkeys((r["task"], r["measure"]) for r in rows))
    found = {(r["format"], r["task"], r["measure"]): r for r in rows}
    lines = []
    for name in dict.fromkeys(r["format"] for r in rows):
        here = [found.get((name, *column)) for column in columns]
        lines.append([f"`{name}`", *(DASH if r is None else figure(r["mean"]) for r in here)])
    return grid(("format", *(f"{measure}, {kind} weights" for kind, measure in columns)), lines) + source("formats")


def embeddings() -> str:
    """Test loss with the embedding and head in fewer bits."""
    rows = [r for r in read("embeddings")["rows"] if "task" in r and r["mean"] is not None]
    if not rows:
        return f"Not measured yet: `{EMBEDDINGS}` writes this table."
    return grid(("text", "embedding bits", "before training", "test loss", "seeds", "less 16 bits", "peak", "file"),
                [[r["task"], str(r["embeddings"]), fixed(r["untrained"], 3), fixed(r["mean"], 4), str(r["seeds"]),
                  _versus(r["minus_16_bits"]), size(r["predicted_bytes"]), size(r["file_bytes"])] for r in rows]) + \
        source("embeddings")


def cards() -> str:
    """The uniform choice of the most bits that fits common cards, by bits of embedding and head (predicted)."""
    rows = [r for r in read("embeddings")["rows"] if "card_gb" in r]
    widths = sorted({r["embeddings"] for r in rows}, reverse=True)
    found = {(r["model"], r["card_gb"], r["embeddings"]): r["best_uniform"] or "nothing fits" for r in rows}
    return grid(("model, card", *(f"embedding in {bits} bits" for bits in widths)),
                [[f"{model}, {gb} GB", *(found[model, gb, bits] for bits in widths)]
                 for model, gb in dict.fromkeys(key[:2] for key in found)]) + source("embeddings")


def codes() -> str:
    """Choice of codes on GSM8K."""
    rows = read("codes_jsonl")["rows"]
    return grid(("codes", "format", "rank", "test loss", "less round to nearest"),
                [[r["codes"], f"`{r['format']}`", str(r["rank"]), fixed(r["mean"], 3),
                  between(r["difference"], r["low"], r["high"]) if "difference" in r else DASH] for r in rows]) + \
        source("codes_jsonl")


def inits() -> str:
    """Adapter initialisations, each at its own learning rate."""
    return grid(("initialisation", "format and rank", "test loss", "less `kaiming`"),
                [[f"`{r['init']}`", r["choice"], fixed(statistics.fmean(r["test_losses"].values()), 4),
                  between(r["mean"], r["low"], r["high"], 4) if "mean" in r else DASH]
                 for r in read("inits_plays")["rows"]]) + source("inits_plays")


def exports() -> str:
    """Logits of every program against the run's own."""
    lines = []
    for r in read("exports")["rows"]:
        version = r["version"] if r["version"].startswith(r["consumer"]) else f"{r['consumer']} {r['version']}"
        lines.append([version, r["variant"].replace("logits_", "").replace("logits", "as exported, with the adapter")
                      .replace("log_probabilities", "as exported, with the adapter"),
                      str(r["tokens"]), *(_tiny(r.get(k)) for k in ("largest", "mean", "kl")),
                      size(r["file_bytes"]), f"{fixed(r['load_seconds'], 1)} s"])
    return grid(("program", "what", "tokens", "largest difference of logits", "mean", "KL divergence", "file", "load"),
                lines) + source("exports")


def chat() -> str:
    """Chat templates against transformers and TRL."""
    rows = [r for r in read("chat")["rows"] if "template" in r]
    same = sum(r["marked_ids_equal"] + r["plain_ids_equal"] for r in rows)
    lines = [[str(len(rows)), f"{same:,}", *(str(t["value"]) if isinstance(t["value"], int) else f"{t['value']:.0e}"
                                              for t in read("chat")["targets"])]]
    return grid(("templates", "conversations with equal token ids", "unlike `apply_chat_template`",
                 "unlike `assistant_only_loss`", "difference of the loss from `SFTTrainer`"), lines) + source("chat")


def _loss(row: Row | None) -> str:
    """Test loss, its difference to the format that was the default of the width, and the number of seeds."""
    if row is None:
        return "not measured"
    d = row["minus_default"]
    return fixed(row["mean"], 4) + ("" if d is None else f"; {_versus(d)}, {d['seeds']} seeds")


def _versus(d: Row | None) -> str:
    return DASH if d is None else between(d["mean"], d["low"], d["high"], 4)


def _tiny(value: float | None) -> str:
    if value is None:
        return DASH
    return figure(value, 2) if value == 0 or value >= 1e-3 else f"{value:.0e}".replace("e-0", "e-")


FORMATS, EMBEDDINGS = (f"python -m bench.{name} --out FILE.jsonl --summary" for name in ("formats", "embeddings"))
TABLES: Tables = {
    "formats": unless_missing("formats", formats, FORMATS),
    "formats-unquantised": unless_missing("formats", unquantised, FORMATS),
    "embeddings": unless_missing("embeddings", embeddings, EMBEDDINGS),
    "embeddings-cards": unless_missing("embeddings", cards, EMBEDDINGS),
    "codes": codes, "inits": inits, "exports": exports, "chat": chat}
