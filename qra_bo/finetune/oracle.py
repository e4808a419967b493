"""The oracle that fine-tunes: quantise, adapt, train, evaluate."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from qra_bo.finetune.adapters.lora import adapter_parameters, attach, detach, rank_choice
from qra_bo.finetune.cache import TensorStore
from qra_bo.finetune.data.records import DataSplits, TokenBlocks, batches
from qra_bo.finetune.gradient_profile import measure_by_gradients
from qra_bo.finetune.manifest import ADAPTER, ADAPTER_WEIGHTS, PROBE, save_probe, write_manifest
from qra_bo.finetune.memory_probe import MemoryProbe, release_unused
from qra_bo.finetune.models.activations import use_checkpointing
from qra_bo.finetune.models.load import located
from qra_bo.finetune.profiling import measure_quantization_sensitivity, measure_rank_sensitivity, unit_choice
from qra_bo.finetune.quantization.bank import LayerBank
from qra_bo.finetune.training.final import VALIDATIONS, FinalConfig
from qra_bo.finetune.training.loop import DivergedError, HeldOut, TrainSettings, continuation, held_out, train_step
from qra_bo.finetune.training.loss import CalibrationText
from qra_bo.finetune.training.optimizer import UnitwiseAdamW
from qra_bo.finetune.training.processes import ALONE, joined
from qra_bo.finetune.training.trial_run import CheckpointStore, TrialRun
from qra_bo.oracle.protocol import Progress, StopRequested, quiet
from qra_bo.sensitivity.profile import SensitivityProfile
from qra_bo.space import Allocation, StorageFormat, Unit
from qra_bo.trials import TrialResult, TrialSpec, TrialState
from qra_bo.utils.errors import TrainingError, is_out_of_memory
from qra_bo.utils.files import follow_umask, writing
from qra_bo.utils.redact import printable

STREAMED_SEQUENCES = 4
"""Least sequences of a batch through a dense base that crosses to the device with every batch."""


@dataclass(frozen=True, slots=True)
class FinetuneSettings:
    """Settings of the oracle besides model, data and bank.

    Args:
        alpha_over_rank: LoRA's scale, the same at every rank.
        largest_rank: Largest rank of I_r.
        scope: ``"peak"`` or ``"stored"``: the meaning of ``measured_bytes``; ``None``: nothing is measured.
        checkpoint_seconds: Least time between two checkpoints of one trial.
        by_gradients: Whether the profile's sensitivities to quantisation come from gradients, not from direct passes.
    """

    train: TrainSettings
    alpha_over_rank: float
    largest_rank: int
    scope: str | None = "peak"
    checkpoint_seconds: float = 60.0
    by_gradients: bool = False


class FinetuneOracle:
    """Oracle that keeps one base model and its quantised linears; each trial swaps these and trains fresh adapters.

    Args:
        data: Its held-out splits are what one look at them takes.
        units: The ``L`` units.
        formats: The ladder's ``F`` formats; those of references are packed at their first use.
        bank: Quantised linears of the base model, which is dense.
        provenance: JSON values that ``describe`` adds to its own.
        tokenizer: The model's, for evaluation tasks; ``None`` where there are none.
        checkpoints: Checkpoints of trials; ``None`` keeps none.
        profiles: The sensitivity profile and its finished parts across runs; ``None`` keeps none.
    """

    def __init__(self, data: DataSplits, units: Sequence[Unit], formats: Sequence[StorageFormat], bank: LayerBank,
                 settings: FinetuneSettings, provenance: Mapping[str, Any], tokenizer: Any = None,
                 checkpoints: CheckpointStore | None = None, profiles: TensorStore | None = None) -> None:
        self.model, self.device, self.data, self.bank = bank.model, bank.device, data, bank
        self.units, self.formats, self.settings = tuple(units), tuple(formats), settings
        self.tokenizer, self._provenance = tokenizer, dict(provenance)
        self.checkpoints, self.profiles = checkpoints, profiles
        self.text = CalibrationText(
            torch.from_numpy(data.calibration.input_ids), torch.from_numpy(data.calibration.labels),
            settings.train.batch, settings.train.logits_chunk)
        self.peft: Any = None  # the wrapped model of the trial under way
        self._over: set[str] = set()  # checkpoints that no later trial continues
        self._unit_of = {linear.name: unit.name for unit in units for linear in unit.linears}
        if settings.train.checkpointing:
            use_checkpointing(self.model)

    def describe(self) -> dict[str, Any]:
        return {"device": str(self.device), "dtype": str(self.bank.compute_dtype).removeprefix("torch."),
                "threads": torch.get_num_threads(), "data_sha256": self.data.sha256,
                "train_sequences": len(self.data.train), "train": asdict(self.settings.train), **self._provenance}

    def profile(self, progress: Progress) -> SensitivityProfile:
        """Measure I_q and I_r on calibration text from the training split; a cached profile costs as much."""
        store = self.profiles
        found = None if store is None else store.load("profile")
        if found is None:
            self.bank.build(progress)
            rank, trained = measure_rank_sensitivity(self.bank, self.units, self.text, self.settings.largest_rank,
                                                     progress, store)
            measure = measure_by_gradients if self.settings.by_gradients else measure_quantization_sensitivity
            made = measure(self.bank, self.units, self.formats, self.text, progress, store)
            numbers = np.array([made.base_loss, made.sequences, trained, made.forward_tokens, made.drawn_error])
            arrays = {"rise": made.rise, "kl": made.kl, "se": made.se, "rank": rank, "numbers": numbers,
                      "direct": np.array([f.name in made.direct for f in self.formats])}
            found = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
            if store is not None:
                store.save("profile", found)
        base, used, trained, forward, error = found["numbers"].tolist()
        source = f"measured on {used:.0f} training sequences"
        if self.settings.by_gradients:
            alone = [f.name for f, direct in zip(self.formats, found["direct"].tolist(), strict=True) if direct]
            source += " by gradients of drawn labels" + (f" (standard error {error:.0%})" if error else "") + \
                (f", {', '.join(alone)} by direct passes, from which gradients differ" if alone else "")
        profile = SensitivityProfile(
            tuple(u.name for u in self.units), tuple(f.name for f in self.formats), found["rise"].numpy(),
            found["kl"].numpy(), found["rank"].numpy(), base,
            source if self.bank.rounding is None else f"{source}, codes by GPTQ", found["se"].numpy())
        # The choice of codes takes a pass of its own, which all trials share.
        rounding = 0 if self.bank.rounding is None else self.bank.rounding.ids.numel()
        self.profile_cost = {"training_tokens": int(trained), "forward_tokens": int(forward) + rounding}
        return profile

    def evaluate(self, request: TrialSpec, progress: Progress, then: Callable[[], None] | None = None) -> TrialResult:
        """Train (from a checkpoint if there is one) and evaluate; ``then`` is called while the adapters are attached.
        Lack of memory and divergence are results."""
        return self._run(TrialRun(request, self.checkpoints), progress, then)

    def forget(self, progress: Progress, trainings: Sequence[str] = ()) -> dict[str, Any]:
        """Remove the checkpoints of the last training, where nothing can continue it, and of ``trainings``
        (``TrialSpec.training``), which other workers may have left; nothing is returned.

        A training at its schedule's end is never promoted, nor is one that failed. Until its result is in the journal
        its checkpoint spares a run that is killed the same steps again, so that it is removed as late as this: before
        the next training, or on request.
        """
        if self.checkpoints is not None:
            for name in (*self._over, *trainings):
                self.checkpoints.remove(name)
        self._over.clear()
        return {}

    def _run(self, run: TrialRun, progress: Progress, then: Callable[[], None] | None = None) -> TrialResult:
        if run.store is not None and run.name not in self._over:
            self.forget(progress)
        try:
            result = self._evaluate(run, progress)
            if then is not None:
                then()
        except DivergedError as error:
            result = run.failed(TrialState.DIVERGED, str(error))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            result = run.failed(TrialState.OOM, (str(error) or type(error).__name__).splitlines()[0])
        finally:
            detach(self.model)
            self.peft = None
            release_unused(self.device)
        ended = result.state is not TrialState.OK or run.request.steps == run.request.schedule_steps
        if ended and run.store is not None:
            self._over.add(run.name)
        return result

    def untuned(self, split: str, progress: Progress) -> dict[str, Any]:
        """Evaluate the base without adapters, its weights as they came: loss and standard error (nats), summed loss and
        targets of every sequence, how it goes on from a held-out prompt, and the tokens that went forward.

        Raises:
            TrainingError: If the loss is not finite: no training could begin from there.
        """
        blocks = self.held_out_text(split)
        self.bank.restore_dense()
        settings = self.settings.train
        if self.bank.streams:  # of a base that crosses to the device with every batch
            settings = replace(settings, batch=max(settings.batch, STREAMED_SEQUENCES))
        found = held_out(self.model, blocks, settings, self.device)
        if not math.isfinite(found.loss):
            raise TrainingError(f"the model's loss before any training is {found.loss}; give dtype=float32, or a model "
                                "whose weights are whole")
        prompt, new, passed = self._continued()
        return {"loss": found.loss, "loss_se": found.se, "sequences": found.sequences,
                "forward_tokens": found.tokens + passed, "prompt": self._text(prompt), "text": self._text(new)}

    def _continued(self) -> tuple[list[int], list[int], int]:
        """Return a held-out prompt, how the model goes on, and the tokens forward; nothing without a tokenizer."""
        if self.tokenizer is None:
            return [], [], 0
        return continuation(self.model, self.data.test, self.tokenizer.eos_token_id, self.device)

    def _text(self, tokens: Sequence[int]) -> str:
        # The last token may end within a character.
        return printable(self.tokenizer.decode(tokens, skip_special_tokens=True).rstrip("\ufffd")) if tokens else ""

    def measure_peak(self, allocation: Mapping[str, Any], train_seed: int, progress: Progress) -> dict[str, Any]:
        """Measure an allocation's memory with two training steps and a batch of the evaluation; nothing is kept. On a
        CPU, whose RAM was checked, what is stored needs no step.

        Returns ``measured_bytes`` in the configured scope and ``peaks`` by phase. Where the device ran out of memory
        there are none, ``state`` is ``"oom"``, and ``message`` is the error.
        """
        steps = 2 if self.settings.scope == "peak" or self.device.type != "cpu" else 0
        request = TrialSpec(Allocation.from_json(allocation), steps, 2, train_seed, 0.0)
        run = TrialRun(request, None, most_blocks=self.settings.train.batch, purpose="measure memory")
        measured = self._run(run, progress)
        return {"state": measured.state.value, "message": measured.message, "measured_bytes": measured.measured_bytes,
                "peaks": measured.peaks}

    def finalise(self, allocation: Mapping[str, Any], options: Mapping[str, Any], train_seed: int,
                 learning_rate: float, out: str, model_cfg: Mapping[str, Any], progress: Progress,
                 share: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Run the final fine-tune on a schedule of its own; save adapter, manifest and probe of the logits in ``out``.

        ``allocation`` is the winner's JSON, ``options`` are the fields of ``FinalConfig``, ``model_cfg`` goes into the
        manifest, ``share`` to ``joined``. Returns the steps planned and done, the step whose adapter is delivered, the
        validation loss by step, the test loss of what is delivered with its standard error and those of every sequence,
        the ``text`` with which it goes on from the prompt of ``untuned``, and the tokens.

        Raises:
            TrainingError: If the training did not end well.
            OutputError: If the result can't be written.
        """
        chosen, folder = Allocation.from_json(allocation), Path(out)
        final = FinalConfig.model_validate(options)
        total = final.length(len(self.data.train), self.settings.train.step_sequences)
        request = TrialSpec(chosen, total, total, train_seed, learning_rate, "test")

        texts = [""]

        def save() -> None:
            texts[0] = self._text(self._continued()[1])
            ranks = rank_choice(self.units, chosen.ranks)
            node = {**located(model_cfg, getattr(self.model.config, "_commit_hash", None)),  # of a model of the hub
                    "text_part": getattr(self.model, "is_text_part", False), "base": self._provenance.get("base")}
            with writing(folder, "run the same command again"):
                self.peft.save_pretrained(str(folder / ADAPTER), safe_serialization=True, save_embedding_layers=False)
                follow_umask(folder / ADAPTER / ADAPTER_WEIGHTS)
                write_manifest(folder, self.bank, ranks, self.settings.alpha_over_rank, node)
                save_probe(self.model, self.data.test, folder / PROBE, self.device)

        with nullcontext(ALONE) if share is None else joined(share) as processes:
            run = TrialRun(request, self.checkpoints, final, processes=processes)
            measured = run.checked(self._run(run, progress, None if processes.number else save))
        curve, losses = run.at.curve, run.at.losses
        apart = -(-len(losses) // (10 * VALIDATIONS)) or 1  # about ten points between two validations
        training = [[stop, fmean(losses[stop - apart:stop])] for stop in range(apart, len(losses) + 1, apart)]
        return {} if processes.number else {
            "training": training, "steps": curve[-1][0], "planned_steps": total, "kept_step": final.kept(curve),
            "curve": [list(point) for point in curve], "loss": measured.loss, "loss_se": measured.loss_se,
            "sequences": measured.sequence_losses, "text": texts[0], "training_tokens": measured.training_tokens}

    def close(self) -> None:
        if self.device.type == "cpu":  # elsewhere the whole base would be copied to a device that is given back
            self.bank.restore_dense()

    def build(self, allocation: Allocation, train_seed: int, progress: Progress = quiet,
              codes: str | None = None) -> None:
        """Quantise the model as in ``allocation`` and attach fresh adapters; ``codes``: see ``TrialSpec``."""
        formats = unit_choice(self.units, allocation.formats)
        ranks = rank_choice(self.units, allocation.ranks)
        self.bank.choose_codes(progress)
        self.bank.install({**formats, **(self.bank.nearest_bases(formats) if codes == "rtn" else {})})
        self.peft = attach(self.model, ranks, self.settings.alpha_over_rank, train_seed, self.bank.compute_dtype)

    def optimizer(self, allocation: Allocation, rate: float, steps: int | None = None) -> UnitwiseAdamW:
        """Return an optimiser with one AdamW group per unit of the built model, for a schedule of ``steps`` steps;
        ``None``: as long as a trial's."""
        ranks = {unit.name: rank for unit, rank in zip(self.units, allocation.ranks, strict=True)}
        settings, parameters = self.settings.train, adapter_parameters(self.model)
        return UnitwiseAdamW(settings.unit_groups(parameters, self._unit_of, ranks, rate, steps), settings.optimizer)

    def _evaluate(self, run: TrialRun, progress: Progress) -> TrialResult:
        request = run.request
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)  # the phase "load" ends when the probe is made
        self.build(request.allocation, request.train_seed, progress, request.codes)
        optimizer = self.optimizer(request.allocation, request.learning_rate, request.schedule_steps)
        switch_seconds = time.monotonic() - run.start
        run.restore(optimizer)
        probe = MemoryProbe(optimizer, self.bank, self.settings.scope)
        self._train(run, optimizer, probe, progress)
        run.choose(optimizer)
        if run.final is not None:
            with suppress(StopRequested):  # the test is all that is left
                progress(f"test ({run.validated})", 0, 1)
        result = self._held_out(request.split, run, probe)
        at = run.at
        return TrialResult(TrialState.OK, result.loss, result.se, (*at.curve, (at.step, result.loss)),
                           at.step - at.first, at.training_tokens, at.forward_tokens, probe.bytes, run.seconds,
                           switch_seconds, peaks=probe.peaks, sequence_losses=result.sequences)

    def _train(self, run: TrialRun, optimizer: UnitwiseAdamW, probe: MemoryProbe, progress: Progress) -> None:
        request, at, settings, train = run.request, run.at, self.settings.train, self.data.train
        resumed_at = at.step
        order = batches(len(train), settings.step_sequences, request.schedule_steps, request.train_seed)
        for stop in run.stops():
            if run.ended:
                break
            while at.step < stop:
                with probe.watch(at.step - resumed_at) as mark:
                    loss, tokens = train_step(self.model, optimizer, train, order, at.step, settings, self.device, mark,
                                              run.processes)
                at.losses.append(loss)
                at.training_tokens += tokens
                at.step += 1
                stopped = True
                with suppress(StopRequested):
                    progress(run.activity, at.step, request.steps)
                    stopped = False
                if any(run.processes.total(stopped)):  # all stop after the same step
                    run.save(optimizer)
                    raise StopRequested
                if time.monotonic() - run.saved > self.settings.checkpoint_seconds:
                    run.save(optimizer)
            if run.final is not None:
                run.record(self._held_out("validation", run, probe).loss, optimizer)
        run.save(optimizer)

    def held_out_text(self, split: str) -> TokenBlocks:
        """Return the sequences of a look at ``split``, ``"validation"`` or ``"test"``."""
        return self.data.test if split == "test" else self.data.validation

    def _held_out(self, split: str, run: TrialRun, probe: MemoryProbe) -> HeldOut:
        blocks = self.held_out_text(split)
        if run.most_blocks is not None:
            blocks = blocks.take(run.most_blocks)
        result: HeldOut = run.processes.of_first(
            lambda: held_out(self.model, blocks, self.settings.train, self.device, probe.evaluation))
        run.at.forward_tokens += result.tokens
        if not math.isfinite(result.loss):
            raise DivergedError(f"held-out loss {result.loss} after {run.at.step} steps")
        return result
