"""Tables of exports and chat templates against the programs that load them."""

from bench.pages.blocks import Tables, figure, fixed, grid, read, source
from qra_bo.report.text import size
from qra_bo.utils.formatting import DASH


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


def _tiny(value: float | None) -> str:
    if value is None:
        return DASH
    return figure(value, 2) if value == 0 or value >= 1e-3 else f"{value:.0e}".replace("e-0", "e-")


TABLES: Tables = {"exports": exports, "chat": chat}
