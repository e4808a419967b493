"""The oracle that really fine-tunes: quantise, adapt, train, evaluate."""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from qra_bo.finetune.adapters.factor_store import FactorStore
from qra_bo.finetune.adapters.inits import Initialiser
from qra_bo.finetune.adapters.lora import AdapterSettings, adapter_parameters, attach, detach
from qra_bo.finetune.data.batches import batches
from qra_bo.finetune.data.records import DataSplits, TokenBlocks
from qra_bo.finetune.evaluation.probe import PROBE, save_probe
from qra_bo.finetune.manifest import write_manifest
from qra_bo.finetune.models.load import commit_of
from qra_bo.finetune.profiling.cache import ProfileCache
from qra_bo.finetune.profiling.gradients import CalibrationText
from qra_bo.finetune.profiling.measure import (
    assemble,
    measure_quantization_sensitivity,
    measure_rank_sensitivity,
    unit_choice,
)
from qra_bo.finetune.quantization.bank import LayerBank
from qra_bo.finetune.tracing.memory_probe import MemoryProbe, begin_load
from qra_bo.finetune.training.checkpoints import Checkpoint, CheckpointStore
from qra_bo.finetune.training.loop import DivergedError, HeldOut, TrainSettings, held_out, train_steps, unit_groups
from qra_bo.finetune.training.optimizer import UnitwiseAdamW
from qra_bo.oracle.protocol import TRAINING, Progress, StopRequested
from qra_bo.sensitivity.profile import SensitivityProfile
from qra_bo.space import Allocation, StorageFormat, Unit
from qra_bo.trials import TrialResult, TrialSpec, TrialState, peaks_to_json
from qra_bo.utils.errors import OracleError, TrainingError, is_out_of_memory
from qra_bo.utils.files import writing

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FinetuneSettings:
    """What the oracle needs besides model, data and bank.

    Args:
        train: Trainer's settings.
        adapter: Adapters' settings.
        eval_blocks: Validation sequences of an evaluation.
        test_blocks: Test sequences of an evaluation on the test split.
        calibration_blocks: Training sequences for the sensitivity profile.
        record_at: Steps after which the validation loss is recorded (the last step always is).
        largest_rank: For I_r.
        scope: ``"peak"`` or ``"stored"``: what ``measured_bytes`` means.
        checkpoint_seconds: Least time between two checkpoints of one evaluation.
    """

    train: TrainSettings
    adapter: AdapterSettings
    eval_blocks: int
    test_blocks: int
    calibration_blocks: int
    record_at: tuple[int, ...]
    largest_rank: int
    scope: str = "peak"
    checkpoint_seconds: float = 60.0


class FinetuneOracle:
    """Keeps one base model and a bank of quantised linears; a new candidate swaps them and trains fresh adapters.

    Args:
        model: The dense base model on ``device`` in ``dtype``.
        data: Token blocks of the splits.
        units: The ``L`` units.
        formats: The ladder's ``F`` formats; formats of references join the bank when first asked for.
        bank: Quantised linears of ``model``.
        settings: See there.
        checkpoints: Where evaluations continue, or ``None`` to keep none.
        device: Where the model is.
        dtype: Compute type.
        profile_cache: Where the sensitivity profile is kept across runs, or ``None``.
        provenance: JSON values that ``describe`` adds to its own.
        factors: Where the decompositions of adapters' starts are kept across runs, or ``None``.
        tokenizer: The model's, for tasks that it is asked; ``None`` where there are none.
    """

    kind = "finetune"

    def __init__(self, model: Any, data: DataSplits, units: Sequence[Unit], formats: Sequence[StorageFormat],
                 bank: LayerBank, settings: FinetuneSettings, checkpoints: CheckpointStore | None,
                 device: torch.device, dtype: torch.dtype, profile_cache: ProfileCache | None,
                 provenance: Mapping[str, Any], factors: FactorStore | None = None, tokenizer: Any = None) -> None:
        self.model, self.data, self.units, self.formats = model, data, tuple(units), tuple(formats)
        self.bank, self.settings, self.checkpoints = bank, settings, checkpoints
        self.profile_cache, self.tokenizer = profile_cache, tokenizer
        self.device, self.dtype, self._provenance = device, dtype, dict(provenance)
        ids, labels = (torch.from_numpy(array[:settings.calibration_blocks])
                       for array in (data.calibration.input_ids, data.calibration.labels))
        text = CalibrationText(ids, labels, settings.train.batch, settings.train.logits_chunk)
        self.inits = self._other_inits = Initialiser(bank, settings.adapter, text, factors)
        self._unit_of = {linear.name: unit.name for unit in units for linear in unit.linears}
        if settings.train.checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})

    def describe(self) -> dict[str, Any]:
        return {"device": str(self.device), "dtype": str(self.dtype).removeprefix("torch."),
                "threads": torch.get_num_threads(), "data_sha256": self.data.sha256,
                "train": asdict(self.settings.train), **self._provenance}

    def profile(self, progress: Progress) -> SensitivityProfile:
        """I_q and I_r on calibration text from the training split; from the cache its cost counts all the same."""
        n = self.settings.calibration_blocks
        inputs, labels = self.data.calibration.input_ids[:n], self.data.calibration.labels[:n]
        cached = self.profile_cache.load(u.name for u in self.units) if self.profile_cache else None
        if cached is not None:
            profile, cost = cached
            self.profile_cost = self._with_start(cost)
            return profile
        self.bank.build(progress)
        gain, trained = measure_rank_sensitivity(self.model, self.bank, self.units, inputs, labels, self.settings.train,
                                     self.device, self.settings.largest_rank, progress)
        damage, base, forward = measure_quantization_sensitivity(self.model, self.bank, self.units, self.formats, inputs, labels,
                                               self.settings.train, self.device, progress)
        cost = {"training_tokens": trained, "forward_tokens": forward}
        self.profile_cost = self._with_start(cost)
        profile = assemble(self.units, self.formats, damage, gain, base,
                           f"measured on {len(inputs)} training sequences"
                           + ("" if self.bank.rounding is None else ", codes by GPTQ"))
        if self.profile_cache:
            self.profile_cache.save(profile, cost)
        return profile

    def _with_start(self, cost: Mapping[str, Any]) -> dict[str, Any]:
        """The profile's cost, and that of what all adapters start from and of the codes' choice."""
        rounding = 0 if self.bank.rounding is None else self.bank.rounding.forward_tokens
        return {**cost, "training_tokens": cost["training_tokens"] + self.inits.training_tokens,
                "forward_tokens": cost["forward_tokens"] + self.inits.forward_tokens + rounding}

    def evaluate(self, request: TrialSpec, progress: Progress,
                 then: Callable[[], None] | None = None) -> TrialResult:
        """Train (from a checkpoint if there is one) and evaluate; ``then`` is called while the trained model is there.
        OOM and divergence are results."""
        start = time.monotonic()
        spent = _Spent()
        try:
            measured = self._evaluate(request, progress, start, spent)
            if then is not None:
                then()
            return measured
        except DivergedError as error:
            return spent.result(TrialState.DIVERGED, str(error))
        except torch.OutOfMemoryError as error:
            return spent.result(TrialState.OOM, str(error).splitlines()[0])
        finally:
            detach(self.model)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def measure_peak(self, allocation: Mapping[str, Any], train_seed: int, progress: Progress,
                     init: str | None = None) -> dict[str, Any]:
        """Measured bytes of an allocation in the configured scope and its peaks by phase, from two real training steps
        and a batch of the evaluation; nothing is kept. Where the device's memory ran out there are none, ``state`` is
        ``"oom"`` and ``message`` says how."""
        chosen = Allocation.from_json(allocation)
        begin_load(self.device)
        try:
            self.build(chosen, train_seed, progress, init)
            optimizer = self.optimizer(chosen, 1.0)
            probe = MemoryProbe(self.device, self.model, optimizer, self.bank, self.settings.scope, follow=True)
            train, settings = self.data.train, self.settings.train
            order = batches(len(train.input_ids), settings.batch, 2, train_seed)
            for step in range(2):
                with probe.watch(step) as mark:
                    train_steps(self.model, optimizer, train.input_ids, train.labels, order, step, step + 1, 2,
                                settings, self.device, mark)
                progress("measure", step + 1, 2)
            text, batch = self.data.validation, min(settings.eval_batch, self.settings.eval_blocks)
            held_out(self.model, text.input_ids[:batch], text.labels[:batch], settings, self.device, probe.evaluation)
            return {"state": TrialState.OK.value, "message": "", "measured_bytes": probe.bytes,
                    "peaks": peaks_to_json(probe.peaks)}
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return {"state": TrialState.OOM.value, "message": str(error).splitlines()[0], "measured_bytes": None,
                    "peaks": {}}
        finally:
            detach(self.model)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def finalise(self, allocation: Mapping[str, Any], steps: int | None, epochs: float, train_seed: int,
                 lr_scale: float, out: str, model_cfg: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        """The final fine-tune: train on a schedule of its own, save adapter, manifest and a probe of the logits.

        Args:
            allocation: The winner, as JSON.
            steps: Optimiser steps; ``None`` leaves it to ``epochs``.
            epochs: Passes over the training split.
            train_seed: Seed of data order and initialisation.
            lr_scale: Calibrated factor on the learning rate.
            out: Folder of the run.
            model_cfg: Configuration of the base model, for the manifest.
            progress: Told after every step.

        Returns:
            Steps, test loss with its standard error, and tokens.

        Raises:
            TrainingError: If the training did not end well.
            OutputError: If the result can't be written.
        """
        chosen, folder = Allocation.from_json(allocation), Path(out)
        total = steps or max(1, round(epochs * len(self.data.train) / self.settings.train.batch))
        request = TrialSpec(chosen, total, total, train_seed, "test", lr_scale)
        try:
            measured = self._evaluate(request, progress, time.monotonic(), _Spent())
            ranks = {linear.name: rank for unit, rank in zip(self.units, chosen.ranks, strict=True)
                     for linear in unit.linears}
            node = {**model_cfg, "revision": model_cfg.get("revision") or commit_of(self.model)}
            with writing(folder, "run the same command again: the training is kept"):
                self.peft.save_pretrained(str(folder / "adapter"), safe_serialization=True,
                                          save_embedding_layers=False)
                write_manifest(folder, self.bank, ranks, self.settings.adapter.alpha_over_rank, node,
                               packed=self.device.type == "cuda")
                save_probe(self.model, self.data.test, folder / PROBE, self.device)
        except (DivergedError, RuntimeError, MemoryError) as error:
            if not isinstance(error, DivergedError) and not is_out_of_memory(error):
                raise
            raise TrainingError(
                f"the final fine-tune of {total} steps did not end well: {type(error).__name__}: "
                f"{str(error).splitlines()[0]}. What the search found is in the run's trials.jsonl; start a run with "
                "another final.steps or a lower adapter.lr, or with a smaller budget if memory ran out") from error
        finally:
            detach(self.model)
        return {"steps": total, "loss": measured.loss, "loss_se": measured.loss_se,
                "training_tokens": measured.training_tokens}

    def close(self) -> None:
        self.bank.restore_dense()

    def _initialiser(self, init: str | None) -> Initialiser:
        """That of the configured start for ``None``; of others the last one used is kept."""
        if init is None or init == self.settings.adapter.init:
            return self.inits
        if self._other_inits.settings.init != init:
            self._other_inits = self.inits.with_start(init)
        return self._other_inits

    def build(self, allocation: Allocation, train_seed: int, progress: Progress | None = None,
              init: str | None = None, codes: str | None = None) -> None:
        """Switch the model to ``allocation`` and attach fresh adapters that start with ``init``; ``codes`` as in
        ``TrialSpec``."""
        if len(allocation) != len(self.units):
            raise OracleError(f"the model has {len(self.units)} units; the allocation has {len(allocation)}")
        formats = unit_choice(self.units, allocation.formats)
        ranks = {linear.name: rank for unit, rank in zip(self.units, allocation.ranks, strict=True)
                 for linear in unit.linears}
        self.bank.choose_codes(progress)
        prepared = self._initialiser(init).prepare(formats, ranks, progress, codes == "rtn")
        nearest = self.bank.nearest_bases(formats) if codes == "rtn" else {}
        self.bank.install(self.model, {**formats, **nearest, **prepared.bases})
        self.peft = attach(self.model, ranks, self.settings.adapter, train_seed, self.dtype, prepared.starts)

    def optimizer(self, allocation: Allocation, lr_scale: float) -> UnitwiseAdamW:
        """One AdamW group per unit of the built model."""
        ranks = {unit.name: rank for unit, rank in zip(self.units, allocation.ranks, strict=True)}
        groups = unit_groups(adapter_parameters(self.model), self._unit_of, ranks, self.settings.train, lr_scale)
        return UnitwiseAdamW(groups, self.settings.train.optimizer)

    def _evaluate(self, request: TrialSpec, progress: Progress, start: float, spent: "_Spent") -> TrialResult:
        settings, allocation, spent.start = self.settings.train, request.allocation, start
        begin_load(self.device)
        self.build(allocation, request.train_seed, progress, request.init, request.codes)
        optimizer = self.optimizer(allocation, request.lr_scale)
        switch_seconds = time.monotonic() - start
        name = (f"{allocation.fingerprint}-{request.schedule_steps}-t{request.train_seed}"
                f"-lr{request.lr_scale:g}{request.how}")
        done, curve = self._restore(name, request, optimizer, spent)
        train = self.data.train
        order = batches(len(train.input_ids), settings.batch, request.schedule_steps, request.train_seed)
        probe = MemoryProbe(self.device, self.model, optimizer, self.bank, self.settings.scope, follow=True)
        resumed_at = done
        due = done - (done > spent.first)  # cut off after a step whose held-out loss was perhaps not recorded yet
        stops = sorted({s for s in (*self.settings.record_at, request.steps) if due < s <= request.steps}
                       - {step for step, _ in curve})
        last_saved = time.monotonic()
        for stop in stops:
            while done < stop:
                with probe.watch(done - resumed_at) as mark:
                    spent.training += train_steps(self.model, optimizer, train.input_ids, train.labels, order, done,
                                                  done + 1, request.schedule_steps, settings, self.device, mark)
                done = spent.done = done + 1
                try:
                    progress(TRAINING, done, request.steps)
                except StopRequested:
                    self._save(name, request, optimizer, spent, curve)
                    raise
                if time.monotonic() - last_saved > self.settings.checkpoint_seconds:
                    self._save(name, request, optimizer, spent, curve)
                    last_saved = time.monotonic()
            if stop < request.steps:
                curve = (*curve, (stop, self._held_out("validation", spent, probe).loss))
        self._save(name, request, optimizer, spent, curve)
        result = self._held_out(request.split, spent, probe)
        if not math.isfinite(result.loss):
            raise DivergedError(f"held-out loss {result.loss} after {done} steps")
        curve = (*curve, (request.steps, result.loss))
        return TrialResult(TrialState.OK, result.loss, result.se, curve, done - spent.first, spent.training,
                           spent.forward, probe.bytes, spent.seconds, switch_seconds, peaks=probe.peaks)

    def _save(self, name: str, request: TrialSpec, optimizer: UnitwiseAdamW, spent: "_Spent",
              curve: tuple[tuple[int, float], ...]) -> None:
        if self.checkpoints:
            self.checkpoints.save(name, Checkpoint(spent.done, request.steps, spent.first, spent.training,
                                                   spent.forward, spent.seconds, curve, optimizer.state()))

    def _restore(self, name: str, request: TrialSpec, optimizer: UnitwiseAdamW,
                 spent: "_Spent") -> tuple[int, tuple[tuple[int, float], ...]]:
        saved = self.checkpoints.load(name, request.steps) if self.checkpoints else None
        if saved is None:
            return 0, ()
        if not optimizer.accepts(saved.state):
            log.warning("the checkpoint of %s is of other adapters and is not used", name)
            return 0, ()
        optimizer.load_state(saved.state)
        spent.done = spent.first = saved.step
        if saved.target == request.steps:  # this very evaluation was cut off: it goes on, with what it spent
            spent.first, spent.training, spent.forward = saved.first, saved.training_tokens, saved.forward_tokens
            spent.earlier = saved.seconds
        return saved.step, saved.curve

    def _held_out(self, split: str, spent: "_Spent", probe: MemoryProbe) -> HeldOut:
        blocks: TokenBlocks = self.data.test if split == "test" else self.data.validation
        limit = self.settings.test_blocks if split == "test" else self.settings.eval_blocks
        result = held_out(self.model, blocks.input_ids[:limit], blocks.labels[:limit], self.settings.train,
                          self.device, probe.evaluation)
        spent.forward += result.tokens
        return result


@dataclass(slots=True)
class _Spent:
    """What an evaluation has cost so far, whether or not it ends well."""

    first: int = 0
    done: int = 0
    training: int = 0
    forward: int = 0
    start: float = field(default_factory=time.monotonic)
    earlier: float = 0.0

    @property
    def seconds(self) -> float:
        """Of this session, and of those before it that the evaluation was cut off in."""
        return self.earlier + time.monotonic() - self.start

    def result(self, state: TrialState, message: str) -> TrialResult:
        return TrialResult(state, None, None, (), max(0, self.done - self.first), self.training, self.forward, None,
                           self.seconds, 0.0, message)
