"""Choice of the codes of a model's linears by GPTQ instead of the libraries' round-to-nearest."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from qra_bo.finetune.cache import TensorStore
from qra_bo.finetune.quantization.base import LevelBackend, PackedLinear, RingBackend, State, backend_of
from qra_bo.finetune.quantization.gptq import compensated_codes
from qra_bo.finetune.quantization.moments import Inputs, each_moments
from qra_bo.finetune.threads import one_thread
from qra_bo.memory.formats import RINGS_NUMEL
from qra_bo.oracle.protocol import Progress
from qra_bo.space import StorageFormat
from qra_bo.utils.errors import ContractError, ModelError, explaining_lack_of_memory

CHOOSE = "choose codes (how each weight is rounded)"


class Rounding:
    """Codes of every linear in some formats, chosen against the inputs that the linear gets on a text.

    One pass makes all of them, in the order of the model; see ``each_moments``.

    Args:
        model: The model, dense when the codes are made.
        linears: Names of the linears.
        formats: Formats; those whose codes are neither levels nor rings keep the codes of ``pack``.
        ids: Token ids of the text, ``n x length``.
        device: Device on which codes are chosen.
        store: Store of codes across runs, or ``None``.
        is_text: Where ``ids`` are no padding, ``n x length``; ``None``: everywhere.
    """

    def __init__(self, model: Any, linears: Sequence[str], formats: Sequence[StorageFormat], ids: Tensor,
                 device: torch.device, store: TensorStore | None, is_text: Tensor | None = None) -> None:
        self.model, self.linears, self.device, self.store = model, tuple(linears), device, store
        self.formats = [fmt for fmt in formats if isinstance(backend_of(fmt), LevelBackend | RingBackend)]
        self.ids, self.is_text = ids, is_text
        self._states: dict[tuple[str, str], State] = {}
        self._ready = False

    def state(self, name: str, fmt: StorageFormat) -> State:
        """Return the packed tensors of a linear with chosen codes, on the host, at the first call after ``prepare``."""
        return self._states.pop((name, fmt.name))

    def prepare(self, progress: Progress) -> None:
        """Choose all codes, or read them from the store; once. Of several processes one chooses, the others wait.

        Raises:
            ContractError: If they are still to be chosen and the model is not dense any more.
            ModelError: If inputs of a layer are not finite.
            DeviceError: If the device has not the memory.
        """
        if self._ready:
            return
        missing, store = self._missing(self.linears) if self.formats else [], self.store
        if missing:
            with nullcontext() if store is None else \
                    store.alone(lambda: progress(CHOOSE, store.count, len(self.linears))):
                still = self._missing(missing)  # another process may have made some of them meanwhile
                if still:
                    self._make(still, progress)
        self._ready = True

    def _missing(self, names: Sequence[str]) -> list[str]:
        """Read the codes of ``names`` from the store; return the names that it lacks."""
        missing = []
        for name in names:
            tensors = None if self.store is None else self.store.load(name)
            if tensors is None:
                missing.append(name)
            self._hold(name, tensors or {})
        return missing

    def _hold(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Take a linear's codes as the store returns them: mapped from its files, and not in memory of this process."""
        for key, tensor in tensors.items():
            fmt, _, part = key.partition(":")
            self._states.setdefault((name, fmt), {})[part] = tensor

    def _make(self, linears: Sequence[str], progress: Progress) -> None:
        modules = {name: self.model.get_submodule(name) for name in linears}
        if any(isinstance(module, PackedLinear) for module in modules.values()):
            raise ContractError("codes are chosen on the dense model, and some of its linears are already quantised")
        done = 0

        def choose(sharing: list[str], moments: Tensor) -> None:
            nonlocal done
            if not torch.isfinite(moments).all():
                raise ModelError(f"codes can't be chosen: inputs of {sharing[0]} are not finite in the 16-bit model; "
                                 "use another dtype, or quantizer.rounding=rtn")
            weights = {name: modules[name].weight.detach().to(self.device) for name in sharing}
            backends = [(fmt, backend_of(fmt)) for fmt in self.formats]
            levels = [(fmt, backend) for fmt, backend in backends if isinstance(backend, LevelBackend)]
            rings = [(fmt, backend) for fmt, backend in backends if isinstance(backend, RingBackend)]
            made: dict[str, State] = {name: {} for name in sharing}

            def keep(found: Iterator[tuple[str, StorageFormat, State]]) -> None:
                for name, fmt, state in found:
                    made[name].update({f"{fmt.name}:{key}": tensor.to("cpu") for key, tensor in state.items()})

            for kind in dict.fromkeys(type(backend) for _, backend in rings):  # each rotates inputs in its own way
                same = [(fmt, backend) for fmt, backend in rings if type(backend) is kind]
                keep(self._by_rings(weights, same, same[0][1].inputs(moments)))
            factored = Inputs.of(moments) if levels else None
            del moments  # as large as the factor, and not needed while codes are chosen
            if factored is not None:
                keep(self._by_levels(weights, levels, factored))
            for name, tensors in made.items():
                self._hold(name, tensors if self.store is None else self.store.mapped(name, tensors))
                done += 1
                progress(CHOOSE, done, len(linears))

        # A lack of memory is not the result of any one allocation.
        with explaining_lack_of_memory(f"choosing codes takes more than {self.device} holds; use a smaller "
                                       "train.length, or quantizer.rounding=rtn"):
            each_moments(self.model, linears, self.ids, self.device, choose, self.is_text)

    def _by_levels(self, weights: Mapping[str, Tensor], formats: Sequence[tuple[StorageFormat, LevelBackend]],
                   inputs: Inputs) -> Iterator[tuple[str, StorageFormat, State]]:
        """Yield the packed tensors of all weights in ``formats`` whose codes are levels of a grid. A core codes a
        matrix in a format; a GPU all of them at once."""
        jobs = [(name, fmt, backend) for name in weights for fmt, backend in formats]
        host, workers = self.device.type == "cpu", torch.get_num_threads()

        def coded(several: Sequence[tuple[str, StorageFormat, LevelBackend]]) -> list[State]:
            states = [backend.pack_for_inputs(weights[name], fmt, self.device, inputs.importance)
                      for name, fmt, backend in several]
            stack = [(weights[name], backend.grid(state, fmt, (weights[name].shape[0], weights[name].shape[1])))
                     for (name, fmt, backend), state in zip(several, states, strict=True)]
            return [backend.recoded(state, fmt, codes) for (_, fmt, backend), state, codes in
                    zip(several, states, compensated_codes(stack, inputs), strict=True)]

        with one_thread(), ThreadPoolExecutor(workers) as pool:
            made = itertools.chain.from_iterable(pool.map(coded, ([job] for job in jobs)) if host else [coded(jobs)])
            yield from ((name, fmt, state) for (name, fmt, _), state in zip(jobs, made, strict=True))

    def _by_rings(self, weights: Mapping[str, Tensor], formats: Sequence[tuple[StorageFormat, RingBackend]],
                  inputs: Inputs) -> Iterator[tuple[str, StorageFormat, State]]:
        """Yield the packed tensors, on the host, of all weights in ``formats``, whose codes are chosen by rings.

        A core codes a matrix, without the interpreter's lock, and no more of them at once than ``RINGS_NUMEL`` allows.
        A GPU would take a dozen launches for each of thousands of weights in turn.
        """
        jobs = [(name, fmt, backend) for name in weights for fmt, backend in formats]
        host = Inputs(inputs.order.cpu(), inputs.factor.cpu())
        largest = max(weight.numel() for weight in weights.values())
        workers = min(torch.get_num_threads(), max(1, RINGS_NUMEL // largest))
        with one_thread(), ThreadPoolExecutor(workers) as pool:
            for (name, fmt, _), state in zip(jobs, pool.map(lambda job: job[2].compensated(
                    weights[job[0]].cpu(), job[1], host), jobs), strict=True):
                yield name, fmt, state
