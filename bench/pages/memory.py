"""Tables of predicted peaks against traces, real runs and a simulated allocator."""

from bench.pages.blocks import Tables, grid, percent, read, source, targets


def traces() -> str:
    """Prediction against traced steps, by architecture."""
    rows = [r for r in read("memory")["rows"] if r["kind"] == "summary"]
    return grid(("decoder", "settings", "least error", "median", "95th percentile", "largest", "within 0 to 3 %"),
                [[r["what"], str(r["tuples"]), *(percent(r[k], 2) for k in ("least", "median", "p95", "most")),
                  percent(r["inside"])]
                 for r in rows]) + source("memory")


def real() -> str:
    """Prediction against measured peaks of real steps on a CPU."""
    rows = [r for r in read("memory")["rows"] if r["kind"] == "real"]
    return grid(("run", "measured bytes", "predicted bytes", "error", "error of the trace"),
                [[r["what"], f"{r['measured_bytes']:,}", f"{r['predicted_bytes']:,}", percent(r["error"], 3),
                  percent(r["trace_error"], 3)] for r in rows]) + source("memory")


def allocator() -> str:
    """Prediction against a simulation of the CUDA allocator."""
    return targets("memory_allocator")


TABLES: Tables = {"memory-traces": traces, "memory-real": real, "memory-allocator": allocator}
