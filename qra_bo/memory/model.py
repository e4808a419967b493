"""Peak device memory of fine-tuning an allocation, predicted to a few percent without loading anything.

The peak is the largest of these phases; each is ``fixed + sum over units + max over units`` (``CostTable``), which a
knapsack solver can treat exactly:

- **forward**, at the loss: everything resident, all saved activations, the head's chunk of logits.
- **backward**: activations die layer by layer while gradients grow, so that a layer counts with the larger of the
  two; on top, the largest instant of any one layer (dequantised weight, gradients in flight).
  Where a step accumulates several batches, forward and backward count activations and all gradients.
- **step**: all gradients, and the bytes of updating one unit: its fp32 gradients.

``load`` holds the resident bytes once an allocation is in place; it is never the largest. Nor is an evaluation of as
many sequences as a batch, of which nothing is saved, so that it is not priced.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from qra_bo.memory.activations import ORDER, LayerModel, TrainShape, group_of, rounding_bytes, workspace_bytes
from qra_bo.memory.embeddings import packed_tables_bytes, unpacked_numel
from qra_bo.memory.formats import known_backend, matrix_bytes
from qra_bo.memory.optimizers import shared_bytes, state_bytes, update_bytes
from qra_bo.memory.stored import codebook_bytes, own_format
from qra_bo.space import Allocation, CostTable, DecoderSpec, IntArray, Linear, PhaseCost, SearchSpace, StorageFormat

__all__ = ["KEYS", "SCOPES", "MemoryModel", "TrainShape"]

SCOPES = ("peak", "stored")
KEYS = ("weights", "quant_metadata", "unquantised", "embeddings", "adapters", "gradients", "optimizer", "activations",
        "workspace")
"""Parts of a peak. Embedding and head count as ``embeddings`` where they are packed, and as unquantised in 16 bits."""

PPM = 1_000_000


@dataclass(frozen=True, slots=True)
class Allowance:
    """Bytes that a device's allocator needs beyond the live ones: ``fixed_bytes`` (the matrix library's workspace), and
    ``share_ppm`` millionths of all bytes that are not resident, lost to fragmentation."""

    fixed_bytes: int
    share_ppm: int


ASSUMED = {"cpu": Allowance(0, 0), "cuda": Allowance(128 * 2**20, 72_000),
           "cuda, checkpointed": Allowance(176 * 2**20, 135_000)}
"""By ``TrainShape.allocator``. A budget bounds the bytes that CUDA's caching allocator reserves. Those of CUDA cover
the simulated allocator with expandable segments (``bench.memory.allocator``); a trial that shows one to be too small
raises it for the rest of its run (``study.setting.Headroom``). A recomputed layer's few large tensors leave larger
gaps. A CUDA context lies outside the allocator and does not count."""
SHARED_BYTES = 1536
"""Look-up tables of the quantisers (1,088 bytes) and the scalars of a step, for the whole model."""


@dataclass(frozen=True)
class _Parts:
    """Bytes by unit: ``L x F`` weights and metadata, ``L`` adapter parameters per rank; ``L x R`` optimiser states,
    and temporaries of updating a tensor."""

    weights: IntArray
    metadata: IntArray
    numel: IntArray
    states: IntArray
    update: IntArray


@dataclass(frozen=True, repr=False)
class MemoryModel:
    """Bytes of allocations of one decoder under one trainer.

    Args:
        scope: ``"peak"`` (device memory of fine-tuning) or ``"stored"`` (quantised weights, metadata, adapters in
            16 bits: the paper's accounting, without unquantised weights).
        allowance: Bytes of the device's allocator beyond the live ones; ``None``: assumed from its kind.
        matrix_bytes: Bytes of codes and of metadata of a format's ``out x in`` matrix as scope ``stored`` counts them:
            those on the device, or those in the files of another program (``Consumer.matrix_bytes``).
    """

    spec: DecoderSpec
    shape: TrainShape
    scope: str = "peak"
    allowance: Allowance | None = None
    matrix_bytes: Callable[[StorageFormat, int, int], tuple[int, int]] = matrix_bytes

    def __repr__(self) -> str:
        shape = self.shape
        return (f"MemoryModel({self.spec.name}, {self.scope}, {shape.device}, {shape.batch} x {shape.length} tokens, "
                f"{shape.optimizer})")

    @cached_property
    def layer(self) -> LayerModel:
        return LayerModel(self.spec, self.shape)

    @property
    def effective_allowance(self) -> Allowance:
        """``allowance``, or the one assumed for the kind of device."""
        return ASSUMED[self.shape.allocator] if self.allowance is None else self.allowance

    @property
    def unquantised_bytes(self) -> int:
        """Norms and biases, and embedding and head where they have 16 bits."""
        return self.shape.compute_dtype_bytes * unpacked_numel(self.spec, self.shape.embeddings)

    @property
    def embedding_bytes(self) -> int:
        """Packed embedding and head with their scales; 0 where they have 16 bits."""
        return packed_tables_bytes(self.spec, self.shape.embeddings)

    @property
    def master_item(self) -> int:
        """Bytes of the fp32 master of an adapter parameter; in fp32 the adapter is its own."""
        return 4 if self.shape.compute_dtype_bytes == 2 else 0

    def table(self, space: SearchSpace) -> CostTable:
        """Bytes of every allocation of ``space``, by the phases that may be the largest. Raises ``SpaceError`` if a
        format can't store some matrix of the space."""
        return CostTable(self.phases(space)[-3:])  # without load

    def phases(self, space: SearchSpace) -> tuple[PhaseCost, ...]:
        """Bytes of every phase, in the order of a step: load, forward, backward, step; in scope ``stored`` just that.
        Transient bytes carry the allowance. Raises ``SpaceError`` if a format can't store a matrix of the space."""
        parts = self._parts(space)
        ranks = np.array(space.ranks, dtype=np.int64)
        stored = (parts.weights + parts.metadata)[:, :, None]
        params = (parts.numel[:, None] * ranks)[:, None, :]
        none = np.zeros((space.n_units, len(space.formats), len(ranks)), dtype=np.int64)
        if self.scope == "stored":
            return (PhaseCost("stored", 0, stored + 2 * params + none, none),)
        c = self.shape.compute_dtype_bytes
        resident = stored + (c + self.master_item) * params + parts.states[:, None, :] + none
        saved, gradients = self._saved(space, parts, ranks), c * params[:, 0, :]
        earlier = gradients if self.shape.accumulate > 1 else np.zeros_like(gradients)  # of the step's batches before
        tables = np.array([known_backend(f).table_bytes for f in space.formats], dtype=np.int64)[None, :, None]
        spike = self._spikes(space, saved, gradients)
        width = np.array([max((max(m.in_features, m.out_features) for m in u.adapted), default=0) for u in space.units])
        unit_gradients = (2 * parts.numel[:, None] * ranks) if c == 2 else np.zeros_like(parts.update)
        converting = unit_gradients + (2 * width[:, None] * ranks if c == 2 else 0)
        step = np.maximum(converting, unit_gradients + parts.update)
        fixed = (self.unquantised_bytes + self.embedding_bytes + SHARED_BYTES + shared_bytes(self.shape.optimizer)
                 + rounding_bytes(self.spec, self.shape) + codebook_bytes(self.spec, space.formats))
        extra, inputs = -self.layer.first_unsaved, self.layer.inputs
        rows = [("load", 0, 0, none, none),
                ("forward", inputs, self.layer.loss_bytes + extra, (saved + earlier)[:, None, :], tables + none),
                ("backward", inputs, extra, np.maximum(saved + earlier, gradients)[:, None, :], spike),
                ("step", inputs, 0, gradients[:, None, :], step[:, None, :] + none)]
        allowance = self.effective_allowance
        share, fixed = allowance.share_ppm, fixed + allowance.fixed_bytes
        return tuple(PhaseCost(name, fixed + given + beyond + beyond * share // PPM,
                               resident + unit + unit * share // PPM, spikes + spikes * share // PPM)
                     for name, given, beyond, unit, spikes in rows)

    def _parts(self, space: SearchSpace) -> _Parts:
        ranks, kind, device = np.array(space.ranks, dtype=np.int64), self.shape.optimizer, self.shape.device
        sizes_of = self.matrix_bytes if self.scope == "stored" else matrix_bytes
        by_shape: dict[tuple[tuple[Any, ...], ...], tuple[IntArray, ...]] = {}
        shapes = [tuple((m.out_features, m.in_features, m.stored, m.adapted) for m in unit.linears)
                  for unit in space.units]
        for shape, unit in dict(zip(shapes, space.units, strict=True)).items():
            sides = np.array([m[:2] for m in shape if m[3]], dtype=np.int64).reshape(-1, 1)
            sizes = np.array([[sizes_of(own_format(f, m), m.out_features, m.in_features) for m in unit.linears]
                              for f in space.formats])
            by_shape[shape] = (*sizes.sum(axis=1).T, sides.sum(), state_bytes(kind, sides * ranks).sum(axis=0),
                               update_bytes(kind, sides * ranks, device).max(axis=0, initial=0))
        return _Parts(*(np.array(part, dtype=np.int64)
                        for part in zip(*(by_shape[shape] for shape in shapes), strict=True)))

    def _saved(self, space: SearchSpace, parts: _Parts, ranks: IntArray) -> IntArray:
        """Saved activations, ``L x R``; those of a layer as a whole are shared out as gradients are."""
        layer_of = np.array([u.linears[0].layer for u in space.units])
        total = np.bincount(layer_of, weights=parts.numel)[layer_of]
        whole = self.layer.stream if self.shape.checkpointing else self.layer.saved
        share = np.ceil(whole * parts.numel / total).astype(np.int64)
        if self.shape.checkpointing:
            return np.repeat(share[:, None], len(ranks), axis=1)
        per_rank = np.array([sum(map(self._rank_saved, u.adapted)) for u in space.units])
        return np.asarray(share[:, None] + np.ceil(per_rank[:, None] * ranks).astype(np.int64))

    def _rank_saved(self, linear: Linear) -> float:
        """Bytes that a rank of a linear's adapter adds; an expert's linear counts with its share of the tokens."""
        spec = self.spec
        return self.layer.rank_saved * (spec.experts_per_token / spec.n_experts if linear.expert else 1)

    def _spikes(self, space: SearchSpace, saved: IntArray, gradients: IntArray) -> IntArray:
        """Largest instant of each unit's layer beyond what the backward phase adds up, ``L x F x R``."""
        members: dict[int, list[Linear]] = {}
        for linear in self.spec.linears:
            members.setdefault(linear.layer, []).append(linear)
        ranks = np.array(space.ranks, dtype=np.int64)
        by_key: dict[tuple[tuple[Any, ...], ...], IntArray] = {}
        rows = []
        for unit in space.units:
            own = set(unit.linears)
            others = [m for m in members[unit.linears[0].layer] if m not in own]
            key = tuple((m.out_features, m.in_features, m.fused, m.stored, m.adapted) for m in (*unit.linears, *others))
            if key not in by_key:
                by_key[key] = self._unit_spike(unit.linears, others, space.formats, ranks)
            rows.append(by_key[key])
        layer_of = np.array([u.linears[0].layer for u in space.units])
        slack, late = _slack(saved, gradients, layer_of, self.shape.accumulate > 1)
        # The final norm's backward pass, beyond all saved activations, its own included.
        final = self.layer.norm_saved + 2 * self.layer.stream + self.layer.norm_spike
        return np.asarray(np.maximum(np.stack(rows) - slack[:, None, None], max(0, final - late)))

    def _unit_spike(self, own: Sequence[Linear], others: Sequence[Linear], formats: Sequence[StorageFormat],
                    ranks: IntArray) -> IntArray:
        """Spike of one unit, ``F x R``; the other linears of its layer have the rank that demands most."""
        layer = self.layer
        adapted, beside = [m for m in own if m.adapted], [m for m in others if m.adapted]
        total = sum(m.in_features + m.out_features for m in (*adapted, *beside))
        best: IntArray = np.zeros((len(formats), len(ranks)), dtype=np.int64)
        for moment in layer.moments:
            active = [m for m in own if group_of(m) == moment.group]
            if moment.group and not active:
                continue
            done = ORDER[:moment.level]
            # With a product comes the gradient of the low-rank activation that joins it.
            held = moment.extra + (layer.recomputed if self.shape.checkpointing else 0) \
                + (layer.rank_saved * ranks if active else np.zeros_like(ranks))
            held = held + sum(self._held(m, group_of(m) in done, total, ranks) for m in adapted)
            held = held + sum(self._held(m, group_of(m) in done, total, ranks).max() for m in beside)
            work = np.array([max((workspace_bytes(own_format(f, m), m, self.shape, moment.result) for m in active),
                                 default=0) for f in formats], dtype=np.int64)
            best = np.maximum(best, work[:, None] + held[None, :])
        return best

    def _held(self, linear: Linear, done: bool, total: int, ranks: IntArray) -> IntArray:
        """Bytes of a linear's adapter during its layer's backward pass beyond those that the phase counts, ``R``.

        The phase counts the larger of saved activations and gradients; added here are the low-rank activation
        (recomputed under checkpointing) or, once the linear is ``done``, the gradients in its place. Where gradients
        accumulate the phase counts activations alone here: earlier gradients are always there, and those of this batch
        are new beside them until they are added.
        """
        checkpointing, low_rank = self.shape.checkpointing, np.ceil(self._rank_saved(linear) * ranks).astype(np.int64)
        sides = linear.in_features + linear.out_features
        gradient = self.shape.compute_dtype_bytes * sides * ranks
        kept = (self.layer.stream if checkpointing else self.layer.saved) * sides // total
        counted = np.asarray(kept + (0 if checkpointing else low_rank))
        if self.shape.accumulate == 1:
            counted = np.maximum(counted, gradient)
        return np.asarray(kept + (np.maximum(low_rank, gradient) if done else low_rank) - counted)

    def file_bytes(self, space: SearchSpace, allocation: Allocation) -> int:
        """Return the bytes of everything that a file of the model holds: what scope ``stored`` counts, embedding, head,
        norms and biases, in 16 bits if not packed. Raises ``SpaceError`` if the allocation is not of this space."""
        (stored,) = replace(self, scope="stored").phases(space)
        linears = int(CostTable((stored,)).totals(space.encode(allocation)[None, :])[0])
        return linears + self.embedding_bytes + 2 * unpacked_numel(self.spec, self.shape.embeddings)

    def breakdown(self, space: SearchSpace, allocation: Allocation) -> dict[str, int]:
        """Bytes by ``KEYS`` in the largest phase; they add up to the predicted peak."""
        return self.phase_breakdown(space, allocation)[1]

    def phase_breakdown(self, space: SearchSpace, allocation: Allocation) -> tuple[str, dict[str, int]]:
        """Name of the largest phase, e.g. ``"backward"``, and bytes by ``KEYS`` in it. Raises ``SpaceError`` if the
        allocation is not of this space."""
        row, table = space.encode(allocation), self.table(space)
        n = space.n_units
        units, q, r = np.arange(n), row[:n], row[n:]
        totals = [int(CostTable((phase,)).totals(row[None, :])[0]) for phase in table.phases]
        phase = table.phases[int(np.argmax(totals))]
        parts, ranks = self._parts(space), np.array(space.ranks, dtype=np.int64)
        params, c = parts.numel * ranks[r], 2 if self.scope == "stored" else self.shape.compute_dtype_bytes
        out = dict.fromkeys(KEYS, 0) | {
            "weights": int(parts.weights[units, q].sum()), "quant_metadata": int(parts.metadata[units, q].sum()),
            "adapters": c * int(params.sum())}
        if self.scope == "stored":
            return phase.name, out
        out["unquantised"], out["embeddings"] = self.unquantised_bytes, self.embedding_bytes
        out["optimizer"] = self.master_item * int(params.sum()) + int(parts.states[units, r].sum())
        saved, gradients = self._saved(space, parts, ranks)[units, r], c * params
        step, both = phase.name == "step", self.shape.accumulate > 1
        later = (phase.name == "backward") & (gradients > saved)  # layers that count with their gradients
        out["gradients"] = int(gradients[later | step | both].sum())
        out["activations"] = self.layer.inputs
        if not step:
            out["activations"] += int(saved[~later | both].sum()) - self.layer.first_unsaved
        if out["activations"] < 0:  # every layer counts with its gradients, the first one's smaller share too
            out["gradients"], out["activations"] = out["gradients"] + out["activations"], 0
        out["workspace"] = max(totals) - sum(out.values())
        return phase.name, out


def _slack(saved: IntArray, gradients: IntArray, layer_of: npt.NDArray[np.intp],
           accumulates: bool) -> tuple[IntArray, int]:
    """Bytes that the backward phase certainly overcounts while a unit's layer is at work (``L``), and at its start.

    Layers above it have gradients where the phase may count their activations, layers below it the reverse; at the
    start no layer has gradients. Where gradients accumulate all layers have them, and only those at or below the one at
    work have the activations that the phase counts too.
    """
    n_layers = int(layer_of.max()) + 1
    done, ahead = (saved, np.zeros_like(saved)) if accumulates else (
        np.maximum(saved - gradients, 0), np.maximum(gradients - saved, 0))
    above = np.bincount(layer_of, weights=done.min(axis=1), minlength=n_layers)
    below = np.bincount(layer_of, weights=ahead.min(axis=1), minlength=n_layers)
    slack = (above.sum() - np.cumsum(above)) + (np.cumsum(below) - below)
    return slack.astype(np.int64)[layer_of], int(below.sum())
