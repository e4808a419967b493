"""Losses of near allocations by parts of the held-out text, on training seeds that they share.

    python -m bench.noise_trials --task gsm8k --data FILE.jsonl [--seeds 1] [--sequences 128]

An evaluation of the tables keeps the mean loss of its held-out text alone, from which the share of that text in the
noise of a paired difference can't be told. This trains a few of a table's good allocations again, on training seeds
that the table does not have, and keeps the loss of every few sequences (bench/data/TASK/parts.jsonl, a line a trial).
What is there already is not trained again. ``python -m bench.noise`` reads the files.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.collect.task import DATA, TASKS, task_config, touches
from qra_bo.finetune.adapters.lora import detach
from qra_bo.finetune.data.records import batches
from qra_bo.finetune.oracle import FinetuneOracle
from qra_bo.finetune.training.loop import held_out, train_steps
from qra_bo.oracle.emulator.emulator import table_rate
from qra_bo.oracle.emulator.table import Table, load_table
from qra_bo.oracle.protocol import Progress, quiet
from qra_bo.pipeline.build import make_executor
from qra_bo.space import Allocation
from qra_bo.study.setting import training_seeds

PARTS = "parts.jsonl"
BY = 4
"""Sequences of a part: those that are evaluated at once."""
CHOSEN = {"plays": ("c4e428f5890fc6e8", "9f403b4b7e79aac8", "d455ce6232e53f3b"),
          "gsm8k": ("0271e73c5cf6e9a6", "476345bade9717f9", "f565e497b67674fd")}
"""Fingerprints of good allocations near one limit that are repeated in each table, a uniform one's neighbour among
them."""


def losses_by_part(oracle: FinetuneOracle, allocation: Mapping[str, Any], steps: int, train_seed: int, lr_scale: float,
                   sequences: int, progress: Progress) -> dict[str, Any]:
    """Train an allocation and return the validation loss of every ``BY`` sequences.

    Args:
        oracle: Holds the model.
        allocation: As JSON.
        steps: Of the whole schedule.
        train_seed: Of initialisation and order of the text.
        lr_scale: Factor on the learning rate.
        sequences: Held-out sequences; the first are those of a trial.
        progress: Called after every step and part.

    Returns:
        ``sums`` of the loss (nats) and ``counts`` of target tokens of every part.
    """
    chosen, settings, train = Allocation.from_json(allocation), oracle.settings.train, oracle.data.train
    text = oracle.data.validation.take(sequences)
    order = batches(len(train.input_ids), settings.step_sequences, steps, train_seed)
    sums, counts = [], []
    try:
        oracle.build(chosen, train_seed, progress)
        optimizer = oracle.optimizer(chosen, lr_scale, steps)
        for step in range(steps):
            train_steps(oracle.model, optimizer, train.input_ids, train.labels, order, step, step + 1, steps, settings,
                        oracle.device, positions=train.positions)
            progress("train", step + 1, steps)
        for start in range(0, len(text.input_ids), BY):
            ids, labels = text.input_ids[start:start + BY], text.labels[start:start + BY]
            positions = None if text.positions is None else text.positions[start:start + BY]
            loss = held_out(oracle.model, ids, labels, settings, oracle.device, positions=positions).loss
            counts.append(int((labels[:, 1:] != -100).sum()))
            sums.append(counts[-1] * loss)
            progress("evaluate", start + BY, len(text.input_ids))
    finally:
        detach(oracle.model)
    return {"sums": sums, "counts": counts}


def new_seeds(table: Table, n: int) -> list[int]:
    """The next ``n`` training seeds that the table does not have and that leave its calibration text alone."""
    facts = table.facts
    known = {row.train_seed for row in table.rows}
    found = [seed for seed in training_seeds(0, 60)[1] if seed not in known and not touches(
        facts.train_blocks, facts.calibration_blocks, facts.step_sequences, facts.steps, seed)]
    return found[:n]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.noise_trials", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=list(TASKS), required=True)
    parser.add_argument("--data", help="file of a task that needs one")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--sequences", type=int, default=128)
    options = parser.parse_args(arguments)
    table, path = load_table(DATA / options.task), DATA / options.task / PARTS
    known = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(row["fingerprint"], row["train_seed"]) for row in known}
    allocations = {row.allocation.fingerprint: row.allocation for row in table.rows}
    rate = table_rate(table.rows)
    with tempfile.TemporaryDirectory(prefix="qra_bo-") as scratch:
        executor = make_executor(task_config(options.task, options.data), Path(scratch))
        try:
            for seed in new_seeds(table, options.seeds):
                for name in CHOSEN[options.task]:
                    if (name, seed) in done:
                        continue
                    found = executor.call("bench.noise_trials:losses_by_part", {
                        "allocation": allocations[name].to_json(), "steps": table.facts.steps,
                        "train_seed": seed, "lr_scale": rate, "sequences": options.sequences}, quiet)
                    row = {"fingerprint": name, "train_seed": seed, "lr_scale": rate, **found}
                    with path.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(row) + "\n")
                    print(f"{name}, seed {seed}: {sum(found['sums']) / sum(found['counts']):.4f}", flush=True)
        finally:
            executor.close()


if __name__ == "__main__":
    main()
