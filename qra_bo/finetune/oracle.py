"""The oracle that fine-tunes: quantise, adapt, train, evaluate."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from qra_bo.finetune.adapters.inits import Initialiser
from qra_bo.finetune.adapters.lora import AdapterSettings, adapter_parameters, attach, detach
from qra_bo.finetune.cache import ProfileCache, TensorStore
from qra_bo.finetune.data.batches import batches
from qra_bo.finetune.data.records import DataSplits, TokenBlocks
from qra_bo.finetune.evaluation.probe import PROBE, save_probe
from qra_bo.finetune.manifest import write_manifest
from qra_bo.finetune.models.load import commit_of
from qra_bo.finetune.profiling.measure import measure_quantization_sensitivity, measure_rank_sensitivity, unit_choice
from qra_bo.finetune.quantization.bank import LayerBank
from qra_bo.finetune.tracing.memory_probe import MemoryProbe, begin_load
from qra_bo.finetune.training.checkpoints import CheckpointStore
from qra_bo.finetune.training.gradients import CalibrationText
from qra_bo.finetune.training.loop import DivergedError, HeldOut, TrainSettings, held_out, train_steps, unit_groups
from qra_bo.finetune.training.optimizer import UnitwiseAdamW
from qra_bo.finetune.training.trial_run import TrialRun
from qra_bo.oracle.protocol import TRAINING, Progress, StopRequested
from qra_bo.sensitivity.profile import SensitivityProfile
from qra_bo.space import Allocation, StorageFormat, Unit
from qra_bo.trials import TrialResult, TrialSpec, TrialState, peaks_to_json
from qra_bo.utils.errors import OracleError, TrainingError, is_out_of_memory
from qra_bo.utils.files import writing


@dataclass(frozen=True, slots=True)
class FinetuneSettings:
    """Settings of the oracle besides model, data and bank.

    Args:
        train: Trainer's settings.
        adapter: Adapters' settings.
        eval_blocks: Validation sequences of an evaluation.
        test_blocks: Test sequences of an evaluation on the test split.
        calibration_blocks: Training sequences for the sensitivity profile.
        record_at: Steps after which the validation loss is recorded (the last step always is).
        largest_rank: Largest rank of I_r.
        scope: ``"peak"`` or ``"stored"``: the meaning of ``measured_bytes``.
        checkpoint_seconds: Least time between two checkpoints of one trial.
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
    """Oracle that keeps one base model and its quantised linears; each trial swaps these and trains fresh adapters.

    Args:
        model: The dense base model on ``device`` in ``dtype``.
        data: Token blocks of the splits.
        units: The ``L`` units.
        formats: The ladder's ``F`` formats; those of references are packed at their first use.
        bank: Quantised linears of ``model``.
        settings: Settings of training and evaluation.
        checkpoints: Where trials continue, or ``None`` to keep none.
        device: Where the model is.
        dtype: Compute type.
        profile_cache: Where the sensitivity profile is kept across runs, or ``None``.
        provenance: JSON values that ``describe`` adds to its own.
        factors: Where the decompositions of adapter initialisations are kept across runs, or ``None``.
        tokenizer: The model's, for evaluation tasks; ``None`` where there are none.
    """

    kind = "finetune"

    def __init__(self, model: Any, data: DataSplits, units: Sequence[Unit], formats: Sequence[StorageFormat],
                 bank: LayerBank, settings: FinetuneSettings, checkpoints: CheckpointStore | None,
                 device: torch.device, dtype: torch.dtype, profile_cache: ProfileCache | None,
                 provenance: Mapping[str, Any], factors: TensorStore | None = None, tokenizer: Any = None) -> None:
        self.model, self.data, self.units, self.formats = model, data, tuple(units), tuple(formats)
        self.bank, self.settings, self.checkpoints = bank, settings, checkpoints
        self.profile_cache, self.tokenizer = profile_cache, tokenizer
        self.device, self.dtype, self._provenance = device, dtype, dict(provenance)
        ids, labels = (torch.from_numpy(array[:settings.calibration_blocks])
                       for array in (data.calibration.input_ids, data.calibration.labels))
        self.text = CalibrationText(ids, labels, settings.train.batch, settings.train.logits_chunk)
        self.inits = self._other_inits = Initialiser(bank, settings.adapter, self.text, factors)
        self._unit_of = {linear.name: unit.name for unit in units for linear in unit.linears}
        if settings.train.checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})

    def describe(self) -> dict[str, Any]:
        return {"device": str(self.device), "dtype": str(self.dtype).removeprefix("torch."),
                "threads": torch.get_num_threads(), "data_sha256": self.data.sha256,
                "train": asdict(self.settings.train), **self._provenance}

    def profile(self, progress: Progress) -> SensitivityProfile:
        """Measure I_q and I_r on calibration text from the training split; a cached profile costs as much."""
        cached = self.profile_cache.load(u.name for u in self.units) if self.profile_cache else None
        if cached is not None:
            profile, cost = cached
        else:
            self.bank.build(progress)
            rank_sensitivity, trained = measure_rank_sensitivity(self.bank, self.units, self.text,
                                                                 self.settings.largest_rank, progress)
            measured, base, forward = measure_quantization_sensitivity(self.bank, self.units, self.formats, self.text,
                                                                       progress)
            source = f"measured on {len(self.text.ids)} training sequences"
            profile = SensitivityProfile(
                tuple(u.name for u in self.units), tuple(f.name for f in self.formats), measured.rise, measured.kl,
                rank_sensitivity, base, source if self.bank.rounding is None else f"{source}, codes by GPTQ",
                measured.se)
            cost = {"training_tokens": trained, "forward_tokens": forward}
            if self.profile_cache:
                self.profile_cache.save(profile, cost)
        # Adapter initialisations and the choice of codes take passes of their own, which all trials share.
        rounding = 0 if self.bank.rounding is None else self.bank.rounding.forward_tokens
        self.profile_cost = {"training_tokens": cost["training_tokens"] + self.inits.training_tokens,
                             "forward_tokens": cost["forward_tokens"] + self.inits.forward_tokens + rounding}
        return profile

    def evaluate(self, request: TrialSpec, progress: Progress,
                 then: Callable[[], None] | None = None) -> TrialResult:
        """Train (from a checkpoint if there is one) and evaluate; ``then`` is called while the adapters are attached.

        Lack of memory and divergence are results.
        """
        return self._run(TrialRun(request, self.checkpoints), progress, then)

    def _run(self, run: TrialRun, progress: Progress, then: Callable[[], None] | None = None) -> TrialResult:
        try:
            measured = self._evaluate(run, progress)
            if then is not None:
                then()
            return measured
        except DivergedError as error:
            return run.failed(TrialState.DIVERGED, str(error))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return run.failed(TrialState.OOM, str(error).splitlines()[0])
        finally:
            detach(self.model)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def measure_peak(self, allocation: Mapping[str, Any], train_seed: int, progress: Progress,
                     init: str | None = None) -> dict[str, Any]:
        """Measure an allocation's memory with two training steps and a batch of the evaluation; nothing is kept.

        Returns:
            ``measured_bytes`` in the configured scope and ``peaks`` by phase. Where the device ran out of memory there
            are none, ``state`` is ``"oom"``, and ``message`` is the error.
        """
        settings = self.settings
        batch = min(settings.train.eval_batch, settings.eval_blocks)
        self.settings = replace(settings, record_at=(), eval_blocks=batch)
        try:
            request = TrialSpec(Allocation.from_json(allocation), 2, 2, train_seed, init=init)
            measured = self._run(TrialRun(request, None), progress)
        finally:
            self.settings = settings
        return {"state": measured.state.value, "message": measured.message, "measured_bytes": measured.measured_bytes,
                "peaks": peaks_to_json(measured.peaks)}

    def finalise(self, allocation: Mapping[str, Any], steps: int | None, epochs: float, train_seed: int,
                 lr_scale: float, out: str, model_cfg: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        """Run the final fine-tune on a schedule of its own; save adapter, manifest and a probe of the logits.

        Args:
            allocation: The winner, as JSON.
            steps: Optimiser steps; ``None`` derives them from ``epochs``.
            epochs: Passes over the training split.
            train_seed: Seed of data order and initialisation.
            lr_scale: Calibrated factor on the learning rate.
            out: Folder of the run.
            model_cfg: Configuration of the base model, for the manifest.
            progress: Called after every step.

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
            measured = self._evaluate(TrialRun(request, self.checkpoints), progress)
            ranks = unit_choice(self.units, chosen.ranks)
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
                f"{str(error).splitlines()[0]}. The results of the search are in the run's trials.jsonl; start a run "
                "with another final.steps or a lower adapter.lr, or with a smaller budget if memory ran out") from error
        finally:
            detach(self.model)
        return {"steps": total, "loss": measured.loss, "loss_se": measured.loss_se,
                "training_tokens": measured.training_tokens}

    def close(self) -> None:
        self.bank.restore_dense()

    def build(self, allocation: Allocation, train_seed: int, progress: Progress | None = None,
              init: str | None = None, codes: str | None = None) -> None:
        """Quantise the model as in ``allocation`` and attach fresh adapters; ``init``, ``codes``: see ``TrialSpec``.

        Raises:
            OracleError: If the allocation is of another number of units.
        """
        if len(allocation) != len(self.units):
            raise OracleError(f"the model has {len(self.units)} units; the allocation has {len(allocation)}")
        formats = unit_choice(self.units, allocation.formats)
        ranks = unit_choice(self.units, allocation.ranks)
        self.bank.choose_codes(progress)
        inits = self.inits
        if init not in (None, self.settings.adapter.init):
            if self._other_inits.settings.init != init:  # the last one used is kept
                self._other_inits = self.inits.with_init(str(init))
            inits = self._other_inits
        prepared = inits.prepare(formats, ranks, progress, codes == "rtn")
        nearest = self.bank.nearest_bases(formats) if codes == "rtn" else {}
        self.bank.install(self.model, {**formats, **nearest, **prepared.bases})
        self.peft = attach(self.model, ranks, self.settings.adapter, train_seed, self.dtype, prepared.pairs)

    def optimizer(self, allocation: Allocation, lr_scale: float) -> UnitwiseAdamW:
        """Return an optimiser with one AdamW group per unit of the built model."""
        ranks = {unit.name: rank for unit, rank in zip(self.units, allocation.ranks, strict=True)}
        groups = unit_groups(adapter_parameters(self.model), self._unit_of, ranks, self.settings.train, lr_scale)
        return UnitwiseAdamW(groups, self.settings.train.optimizer)

    def _evaluate(self, run: TrialRun, progress: Progress) -> TrialResult:
        request = run.request
        begin_load(self.device)
        self.build(request.allocation, request.train_seed, progress, request.init, request.codes)
        optimizer = self.optimizer(request.allocation, request.lr_scale)
        switch_seconds = time.monotonic() - run.start
        run.restore(optimizer)
        probe = MemoryProbe(self.device, self.model, optimizer, self.bank, self.settings.scope, follow=True)
        self._train(run, optimizer, probe, progress)
        result = self._held_out(request.split, run, probe)
        if not math.isfinite(result.loss):
            raise DivergedError(f"held-out loss {result.loss} after {run.at.step} steps")
        at = run.at
        return TrialResult(TrialState.OK, result.loss, result.se, (*at.curve, (at.step, result.loss)),
                           at.step - at.first, at.training_tokens, at.forward_tokens, probe.bytes, run.seconds,
                           switch_seconds, peaks=probe.peaks)

    def _train(self, run: TrialRun, optimizer: UnitwiseAdamW, probe: MemoryProbe, progress: Progress) -> None:
        request, at, settings, train = run.request, run.at, self.settings.train, self.data.train
        resumed_at = at.step
        order = batches(len(train.input_ids), settings.batch, request.schedule_steps, request.train_seed)
        for stop in run.stops(self.settings.record_at):
            while at.step < stop:
                with probe.watch(at.step - resumed_at) as mark:
                    at.training_tokens += train_steps(
                        self.model, optimizer, train.input_ids, train.labels, order, at.step, at.step + 1,
                        request.schedule_steps, settings, self.device, mark)
                at.step += 1
                try:
                    progress(TRAINING, at.step, request.steps)
                except StopRequested:
                    run.save(optimizer.state())
                    raise
                if time.monotonic() - run.saved > self.settings.checkpoint_seconds:
                    run.save(optimizer.state())
            if stop < request.steps:
                at.curve = (*at.curve, (stop, self._held_out("validation", run, probe).loss))
        run.save(optimizer.state())

    def _held_out(self, split: str, run: TrialRun, probe: MemoryProbe) -> HeldOut:
        blocks: TokenBlocks = self.data.test if split == "test" else self.data.validation
        limit = self.settings.test_blocks if split == "test" else self.settings.eval_blocks
        result = held_out(self.model, blocks.input_ids[:limit], blocks.labels[:limit], self.settings.train,
                          self.device, probe.evaluation)
        run.at.forward_tokens += result.tokens
        return result
