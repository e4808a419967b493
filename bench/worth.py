"""What a difference of the loss is worth: perplexity, accuracy of the next token, and a generated text.

    python -m bench.worth --out FILE.jsonl [--gsm8k RECORDS.jsonl] [--steps 24] [--rates 0.5 1]
    python -m bench.worth --out FILE.jsonl --summary

Beside the model without training stand QLoRA, LoRA on 16-bit weights, the best uniform choice within 54 MB and the mix
within 54 MB that guessed exchange rates of 24 steps choose. Each is trained once at every rate, on an unseen seed; the
rate with the least validation loss counts. Loss, accuracy and text are of the test split: of GSM8K's answers, and of
all text of the plays. Finished trainings are lines of --out.
"""

import json
import math
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from bench.length.command import run, study_config
from bench.length.plan import LIMITS, UNIFORM, UNSEEN_SEEDS, Choice, make_plan
from bench.length.trials import append
from bench.report import RESULTS, publish
from qra_bo.execution.base import OracleSpec
from qra_bo.execution.local import LocalExecutor
from qra_bo.finetune.data.records import NO_LOSS
from qra_bo.finetune.oracle import FinetuneOracle
from qra_bo.finetune.training.loop import held_out
from qra_bo.finetune.training.loss import hidden_states, logits_of
from qra_bo.finetune.training.sample import continuation, prompt_of
from qra_bo.oracle.protocol import Progress, quiet
from qra_bo.pipeline.build import ORACLE, limits
from qra_bo.trials import TrialSpec

UNTUNED = "untuned"
NEW_TOKENS = 40
COLUMNS = ("task", "steps", "name", "learning_rate", "loss", "perplexity", "accuracy")
Row = dict[str, Any]


def choices() -> dict[str, Choice]:
    """Return what is trained, by title."""
    small, *_ = LIMITS
    bits, rank = UNIFORM[small][0]
    known = {c.name: c for block in make_plan() for c in block.choices}
    named = {"QLoRA": "QLoRA (NF4, round-to-nearest, rank 16)", "LoRA-16": "LoRA-16 (16-bit base, rank 16)",
             "best uniform choice": f"uniform {bits} bits, rank {rank}", "mixed": f"guessed for 24 steps, {small}"}
    return {title: known[name] for title, name in named.items()}


@torch.no_grad()
def measured(oracle: FinetuneOracle) -> Row:
    """Return the validation loss, the share of the test split's target tokens that the model finds most likely, and a
    text of its own."""
    model, blocks, right, count = oracle.model, oracle.data.test.take(oracle.settings.eval_blocks), 0, 0
    model.eval()
    for ids, labels in zip(torch.from_numpy(blocks.input_ids), torch.from_numpy(blocks.labels), strict=True):
        taken = labels[1:] != NO_LOSS
        found = logits_of(model, hidden_states(model, ids[None].to(oracle.device))[0, :-1][taken]).argmax(-1).cpu()
        right, count = right + int((found == labels[1:][taken]).sum()), count + int(taken.sum())
    prompt = prompt_of(oracle.data.test)
    text = continuation(model, prompt, oracle.tokenizer.eos_token_id, oracle.device, NEW_TOKENS)
    others = oracle.data.validation.take(oracle.settings.eval_blocks)
    validation = held_out(model, others.input_ids, others.labels, oracle.settings.train, oracle.device,
                          positions=others.positions)
    return {"validation": validation.loss, "accuracy": right / count, "tokens": count,
            "prompt": oracle.tokenizer.decode(prompt), "text": oracle.tokenizer.decode(text)}


def trained(oracle: FinetuneOracle, spec: Mapping[str, Any], progress: Progress) -> Row:
    """Train and evaluate on both splits; called in the worker process."""
    found: Row = {}

    def then() -> None:
        found.update(measured(oracle))

    request = TrialSpec.from_json(spec)
    test = oracle.evaluate(request, progress, then)
    return {"state": test.state.value, "loss": test.loss, "seconds": round(test.seconds, 1), **found}


def untuned(oracle: FinetuneOracle, progress: Progress) -> Row:
    """Evaluate the model without adapters; called in the worker process."""
    return {"loss": oracle.untuned("test", progress)["loss"], **measured(oracle)}


def train(text: str, gsm8k: Path | None, steps: int, rates: Sequence[float], out: Path) -> None:
    """Train what ``out`` lacks of one text, and append it."""
    config = study_config(text, gsm8k)
    done = {(e["task"], e["name"], e["steps"], e["factor"]) for e in finished(out)}
    wanted = [(UNTUNED, 0, 0.0), *((title, steps, rate) for title in choices() for rate in rates)]
    missing = [job for job in wanted if (text, *job) not in done]
    if not missing:
        return
    folder = out.parent / f"work-{text}"
    folder.mkdir(parents=True, exist_ok=True)
    with closing(LocalExecutor([OracleSpec(ORACLE, {"config": config.to_dict(), "out": str(folder),
                                                    "threads": torch.get_num_threads()})], limits(config))) as executor:
        for title, length, rate in missing:
            if title == UNTUNED:
                found = executor.call("bench.worth:untuned", {}, quiet)
            else:
                choice = choices()[title]
                spec = TrialSpec(choice.allocation, length, length, UNSEEN_SEEDS[0], "test", rate, codes=choice.codes)
                found = executor.call("bench.worth:trained", {"spec": spec.to_json()}, quiet)
            append(out, {"task": text, "name": title, "steps": length, "factor": rate,
                         "learning_rate": rate * config.adapter.lr, **found})
            print(f"{text}, {title}, {length} steps, rate x {rate:g}: loss {found['loss']}, accuracy "
                  f"{found.get('accuracy')}", flush=True)


def finished(out: Path) -> list[Row]:
    """Return the finished trainings."""
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] if out.exists() else []


def best_rows(events: Sequence[Row]) -> list[Row]:
    """Return of every text, length and choice the training at the rate of the least validation loss."""
    best: dict[tuple[str, int, str], Row] = {}
    for event in events:
        key = event["task"], event["steps"], event["name"]
        if event["loss"] is not None and (key not in best or event["validation"] < best[key]["validation"]):
            best[key] = event
    order = [UNTUNED, *choices()]
    rows = [{**e, "perplexity": math.exp(e["loss"]), "rates": sum(
        (o["task"], o["steps"], o["name"]) == (e["task"], e["steps"], e["name"]) for o in events)}
        for e in best.values()]
    return sorted(rows, key=lambda e: (e["task"], e["steps"], order.index(e["name"])))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = ArgumentParser(prog="python -m bench.worth", description=__doc__,
                            formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSONL file of the trainings")
    parser.add_argument("--gsm8k", type=Path, help="JSONL file with GSM8K's training records; without it the plays")
    parser.add_argument("--steps", type=int, default=24, help="optimiser steps")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.5, 1.0], help="factors on the learning rate")
    parser.add_argument("--summary", action="store_true", help="only write the results of what is finished")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args(arguments)

    def job() -> None:
        if options.summary:
            publish("worth", [], best_rows(finished(options.out)), COLUMNS, folder=options.results)
        else:
            train("plays" if options.gsm8k is None else "gsm8k", options.gsm8k, options.steps, options.rates,
                  options.out)

    return run(job)


if __name__ == "__main__":
    sys.exit(main())
