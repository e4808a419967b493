"""Second moments of a linear's inputs, and their factors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qra_bo.finetune.models.activations import decoder_layers, run_layer, starting_at
from qra_bo.finetune.models.experts import Experts, pooled
from qra_bo.space.decoder import expert_of
from qra_bo.utils.errors import ModelError, is_out_of_memory

DAMPING = 0.01
"""Added to the diagonal of the second moments, as a share of its mean (the paper's)."""
ROWS = 2048
"""Inputs that are widened to fp32 at a time, and tokens that go forward at once."""
COLUMNS = 512
"""Columns of second moments that are computed together, from the diagonal down."""
ALIKE = 8
"""Tokens of a text that show as much of its correlations as one that is independent of all others."""
MOST_ADDED = 1000
"""Times its own moment that an input may have added to it: correlations are gone."""
LEAST_QUARTER = 128
"""Columns of a triangular matrix that are inverted at once."""


@torch.no_grad()
def each_moments(model: Any, linears: Sequence[str], ids: Tensor, device: torch.device,
                 use: Callable[[list[str], Tensor], None], is_text: Tensor | None = None) -> None:
    """Send ``ids`` (``n x length``) through the dense model layer by layer, and pass the second moments of every input
    of linears to ``use``.

    ``ROWS`` tokens, and at least one sequence, are on ``device`` at once; inputs of the next layer wait on the host,
    and the moments of one layer are alive at a time. ``use`` is called with the names of the linears that share an
    input and its moments (``in x in`` in fp32) over the tokens where ``is_text`` holds (``n x length``; ``None``:
    everywhere), in the order in which the model calls them. The moments of an expert that fewer tokens reach than it
    has inputs are completed by those of all experts of its layer (``pooled``). Correlations are shrunk (``shrink``).
    The model's mode is restored.
    """
    size, training, layers = max(1, ROWS // ids.shape[1]), model.training, decoder_layers(model)
    parts = torch.split(ids, size)
    counted = [slice(None)] * len(parts) if is_text is None or bool(is_text.all()) else \
        [part.flatten().to(device) for part in torch.split(is_text, size)]
    below = [torch.empty(0)] * len(parts)  # the first layer gets the embeddings
    part, last, first, chosen = 0, list[Tensor](), "", torch.empty(0)
    seen: dict[str, int] = {}  # tokens that reached each expert's linear
    shared: dict[str, list[str]] = {}
    moments: dict[str, Tensor] = {}

    def hook_of(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        expert = expert_of(name)

        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            nonlocal first
            if not last or last[0] is not args[0]:
                last[:], first, taken = [args[0]], name, counted[part]
                if expert is not None and not isinstance(taken, slice):
                    taken = taken[torch.where(chosen == expert)[0]]
                rows = args[0].reshape(-1, args[0].shape[-1])[taken]
                moments[name] = second_moments(rows, moments.get(name))
                seen[name] = seen.get(name, 0) + len(rows)
            if part == 0 and expert is None:
                shared.setdefault(first, []).append(name)
        return hook

    def route(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        nonlocal chosen
        chosen = args[1]

    model.eval()
    try:
        with starting_at(model, 0, below[0]):
            pass  # the form of a layer's output is asked for now, and not while there are hooks
        for index, layer in enumerate(layers):
            own = set(layer.modules())
            handles = [module.register_forward_pre_hook(hook_of(name)) for name in linears
                       if (module := model.get_submodule(name)) in own]
            handles += [module.register_forward_pre_hook(route) for module in own if isinstance(module, Experts)]
            try:
                for part, tokens in enumerate(parts):
                    below[part] = run_layer(model, tokens.to(device), index, below[part].to(device))[0].to("cpu")
                    last.clear()
            finally:
                for handle in handles:
                    handle.remove()
            for name in list(shared):
                use(shared.pop(name), shrink(moments.pop(name), seen[name]))
            experts = [name for name in linears if expert_of(name) is not None and model.get_submodule(name) in own]
            for name, total, reached in pooled(experts, moments, seen):
                use([name], shrink(total, reached))
    finally:
        model.train(training)


def second_moments(inputs: Tensor, total: Tensor | None = None) -> Tensor:
    """Return ``X^T X``, ``in x in`` in fp32, of inputs ``... x in``; it is added to ``total`` in place, if given.

    The product is symmetric: half of it is computed, and mirrored.
    """
    rows = inputs.reshape(-1, inputs.shape[-1])
    moments = torch.zeros(rows.shape[1], rows.shape[1], device=rows.device) if total is None else total
    for part in torch.split(rows, ROWS):
        wide = part.float()
        for left in range(0, len(moments), COLUMNS):
            right = left + COLUMNS
            moments[left:, left:right] += wide[:, left:].T @ wide[:, left:right]
            moments[left:right, right:] = moments[right:, left:right].T
    return moments


def shrink(moments: Tensor, tokens: int) -> Tensor:
    """Return second moments of inputs (``in x in``) with more on the diagonal, in place, so that correlations lack the
    share of their squares that is chance where so many ``tokens`` were seen (Schäfer and Strimmer 2005,
    doi 10.2202/1544-6115.1175).

    Chance gives correlations of independent tokens a square of ``1 / tokens``; ``ALIKE`` tokens of a text count as one.
    Codes that are fitted to chance err more on other text, most where inputs are wide and hardly correlate. Inputs
    above the mean get as much as the mean one: a few that are huge on single tokens keep their correlations.
    """
    diagonal = moments.diagonal()
    scale = torch.where(diagonal > 0, diagonal.rsqrt(), 0.0)
    n = int(scale.count_nonzero())
    squares = sum(float((part * scale[:, None] * of_part).square().sum()) for part, of_part in zip(
        torch.split(moments, COLUMNS, dim=1), torch.split(scale, COLUMNS), strict=True)) - n
    chance = ALIKE * n * (n - 1) / max(1, tokens)
    added = chance / max(squares - chance, chance / MOST_ADDED, 1e-30)
    diagonal.add_(added * torch.minimum(diagonal, diagonal.mean()))
    return moments


@dataclass(frozen=True, slots=True)
class Inputs:
    """Factored second moments of inputs: columns by decreasing moment, and the upper Cholesky factor of the inverse
    moments in that order, ``in x in``. The most important columns are rounded while most others are free."""

    order: Tensor
    factor: Tensor

    @classmethod
    def of(cls, moments: Tensor, by_moment: bool = True) -> "Inputs":
        """Factor ``X^T X`` (``in x in``) of inputs ``X`` (``tokens x in``), where the moments are; ``by_moment``, or in
        the order that they have.

        In fp32, as the paper does: damped moments have a condition of at most ``in / DAMPING``. Where a device has no
        room, or they are not positive definite in fp32, they are factored in fp64 on the host.

        Raises:
            ModelError: If they are not positive definite.
        """
        try:
            order, factor, failed = _factored(moments.float(), by_moment)
            if not failed:
                return cls(order, factor)
        except RuntimeError as error:
            if moments.device.type == "cpu" or not is_out_of_memory(error):
                raise
        order, factor, failed = _factored(moments.to("cpu", torch.float64), by_moment)
        if failed:
            raise ModelError("second moments of a linear's inputs are not positive definite; use another dtype, or "
                             "quantizer.rounding=rtn, which needs none")
        return cls(order.to(moments.device), factor.to(moments.device, torch.float32))

    @property
    def importance(self) -> Tensor:
        """What the square of an error of each input's weights costs, ``in``, once later inputs have compensated it: the
        input's moment less what these predict of it."""
        return self.factor.diagonal().square().reciprocal()[torch.argsort(self.order)]


def _factored(moments: Tensor, by_moment: bool = True) -> tuple[Tensor, Tensor, bool]:
    """Return the order of the columns, the factor, and whether the decomposition failed.

    With columns in reverse, the moments are ``L L^T``, and the inverse of ``L`` in reverse is the factor. A matrix goes
    as soon as the next is made from it: for the widest layers each takes a GB of a GPU.
    """
    diagonal = moments.diagonal()
    mean = diagonal.mean()
    damped = diagonal + torch.where(mean > 0, DAMPING * mean, 1.0)  # 1.0: inputs that are always 0
    order = torch.argsort(damped, descending=True, stable=True) if by_moment else \
        torch.arange(len(damped), device=damped.device)
    reverse = order.flip(0)
    rows = moments[reverse]
    del moments, diagonal  # a view of them
    matrix = rows[:, reverse]
    del rows
    matrix.diagonal().copy_(damped[reverse])
    lower, failed = torch.linalg.cholesky_ex(matrix)
    del matrix
    _invert(lower)
    return order, lower.flip(0, 1), bool(failed > 0)


def _invert(lower: Tensor) -> None:
    """Invert a lower triangular matrix in place, by its quarters: a third of a solution's operations."""
    n = len(lower)
    if n <= LEAST_QUARTER:
        unit = torch.eye(n, dtype=lower.dtype, device=lower.device)
        lower.copy_(torch.linalg.solve_triangular(lower, unit, upper=False))
        return
    first, last, below = lower[:n // 2, :n // 2], lower[n // 2:, n // 2:], lower[n // 2:, :n // 2]
    _invert(first)
    _invert(last)
    below.copy_(-(last @ below) @ first)
