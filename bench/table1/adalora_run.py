"""One evaluation with AdaLoRA: ranks shrink while it trains, and what is evaluated are the ranks that stayed."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from bench.table1.adalora import AdaLoraOptimizer, AdaLoraSettings, RankAllocator, make_triplets, realise
from qra_bo.finetune.adapters.lora import adapter_parameters, attach, detach
from qra_bo.finetune.data.records import batches
from qra_bo.finetune.memory_probe import MemoryProbe
from qra_bo.finetune.oracle import FinetuneOracle
from qra_bo.finetune.profiling import unit_choice
from qra_bo.finetune.training.loop import DivergedError, held_out, train_step
from qra_bo.finetune.training.optimizer import UnitwiseAdamW
from qra_bo.oracle.protocol import TRAINING, Progress
from qra_bo.oracle.synthetic import SyntheticOracle
from qra_bo.space import Allocation
from qra_bo.trials import TrialSpec, TrialState
from qra_bo.utils.errors import ContractError, is_out_of_memory


@dataclass(frozen=True, slots=True)
class AdaLoraTask:
    """What is to be trained.

    Args:
        formats: Format of every unit.
        settings: Ranks and schedule.
        steps: Optimiser steps; the schedule of the ranks is scaled to them.
        train_seed: Of data order and initialisation.
        split: ``"validation"`` or ``"test"``.
        learning_rate: As in ``TrialSpec``; the rule gives that of the initial rank. E starts at zero between
            factors of small norm, so that AdaLoRA wants a rate several times LoRA's: calibrate it over a wide range.
        measure: On a CPU, follow storages in the second step, for ``measured_bytes`` of the peak.
    """

    formats: tuple[str, ...]
    settings: AdaLoraSettings
    steps: int
    train_seed: int
    split: str
    learning_rate: float
    measure: bool


def evaluate_adalora(oracle: FinetuneOracle | SyntheticOracle, formats: Sequence[str], initial_rank: int,
                     target_rank: int, steps: int, train_seed: int, split: str, learning_rate: float, measure: bool,
                     progress: Progress) -> dict[str, Any]:
    """Fine-tune and evaluate with AdaLoRA instead of fixed ranks, in the oracle's process.

    The synthetic oracle models no triplets: there the result is that of LoRA with the target rank everywhere.

    Returns:
        As ``run_adalora``.
    """
    if isinstance(oracle, SyntheticOracle):
        allocation = Allocation(tuple(formats), (target_rank,) * len(formats))
        m = oracle.evaluate(TrialSpec(allocation, steps, steps, train_seed, learning_rate, split), progress)
        names = [linear.name for unit in oracle.landscape.space.units for linear in unit.linears]
        return {"state": m.state.value, "message": m.message, "loss": m.loss, "loss_se": m.loss_se,
                "ranks": dict.fromkeys(names, target_rank), "average_rank": float(target_rank),
                "training_tokens": m.training_tokens, "forward_tokens": m.forward_tokens, "measured_bytes": None,
                "seconds": m.seconds}
    task = AdaLoraTask(tuple(formats), AdaLoraSettings(initial_rank, target_rank), steps, train_seed, split,
                       learning_rate, measure)
    return run_adalora(oracle, task, progress)


def run_adalora(oracle: FinetuneOracle, task: AdaLoraTask, progress: Progress,
                then: Callable[[], None] | None = None) -> dict[str, Any]:
    """Train and evaluate; ``then`` is called while the trained model is there. Divergence and lack of memory are
    results.

    Returns:
        JSON values: ``state``, ``message``, ``loss``, ``loss_se`` (``None`` unless ``state`` is ``ok``), ``ranks`` (by
        module, as realised), ``average_rank``, ``training_tokens``, ``forward_tokens``, ``measured_bytes`` (of the
        oracle's memory scope, or ``None``) and ``seconds``.

    Raises:
        ContractError: If there are not as many formats as units.
    """
    if len(task.formats) != len(oracle.units):
        raise ContractError(f"the model has {len(oracle.units)} units; {len(task.formats)} formats were given")
    start = time.monotonic()
    result: dict[str, Any] = {"state": TrialState.OK.value, "message": "", "loss": None, "loss_se": None, "ranks": {},
                              "average_rank": None, "training_tokens": 0, "forward_tokens": 0, "measured_bytes": None}
    try:
        _train(oracle, task, progress, result)
        if then is not None:
            then()
    except DivergedError as error:
        result.update(state=TrialState.DIVERGED.value, message=str(error))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        result.update(state=TrialState.OOM.value, message=str(error).splitlines()[0])
    finally:
        detach(oracle.model)
    return {**result, "seconds": time.monotonic() - start}


def _train(oracle: FinetuneOracle, task: AdaLoraTask, progress: Progress, result: dict[str, Any]) -> None:
    settings, data, scope = oracle.settings.train, oracle.data, oracle.settings.scope
    oracle.bank.install(unit_choice(oracle.units, task.formats))
    names = [linear.name for unit in oracle.units for linear in unit.linears]
    initial = task.settings.initial_rank
    attach(oracle.model, dict.fromkeys(names, initial),
           oracle.settings.alpha_over_rank, task.train_seed, oracle.bank.compute_dtype)
    parameters = make_triplets(oracle.model, task.train_seed)
    unit_of = {linear.name: unit.name for unit in oracle.units for linear in unit.linears}
    groups = settings.unit_groups(parameters, unit_of, {u.name: initial for u in oracle.units}, task.learning_rate,
                                  task.steps)
    allocator = RankAllocator(parameters, task.settings, task.steps)
    optimizer = AdaLoraOptimizer(UnitwiseAdamW(groups, settings.optimizer), allocator)
    probe = MemoryProbe(optimizer, oracle.bank, scope)
    watches = task.measure or oracle.device.type == "cuda"
    order = batches(len(data.train.input_ids), settings.step_sequences, task.steps, task.train_seed)
    for step in range(task.steps):
        with probe.watch(step) if watches else nullcontext(lambda phase: None) as mark:
            result["training_tokens"] += train_step(oracle.model, optimizer, data.train, order, step, settings,
                                                    oracle.device, mark)[1]
        progress(TRAINING, step + 1, task.steps)
    ranks = realise(oracle.model, allocator.kept)
    found = held_out(oracle.model, oracle.held_out_text(task.split), settings, oracle.device)
    result["forward_tokens"] = found.tokens
    if not math.isfinite(found.loss):
        raise DivergedError(f"held-out loss {found.loss} after {task.steps} steps")
    stored = oracle.bank.stored_bytes(oracle.bank.current) + 2 * sum(
        p.numel() for n, pair in adapter_parameters(oracle.model).items() if ranks[n] for p in pair.values())
    result.update(loss=found.loss, loss_se=found.se, ranks=ranks, average_rank=sum(ranks.values()) / len(ranks),
                  measured_bytes=stored if scope == "stored" else probe.bytes)
