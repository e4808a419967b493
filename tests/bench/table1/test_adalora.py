"""AdaLoRA: the schedule and masks of PEFT's, ranks that really change, on every backend, within predicted bytes."""

from types import SimpleNamespace

import pytest
import torch

from bench.table1.adalora import AdaLoraOptimizer, AdaLoraSettings, RankAllocator, TripletLora, make_triplets, realise
from bench.table1.adalora_memory import adalora_bytes
from bench.table1.adalora_run import evaluate_adalora
from qra_bo.finetune.adapters.lora import attach, detach, lora_layers
from qra_bo.finetune.quantization.bank import LayerBank
from qra_bo.finetune.training.optimizer import AdamWSettings, UnitwiseAdamW
from qra_bo.memory.formats import parse_format
from qra_bo.memory.model import MemoryModel, TrainShape
from qra_bo.space import SearchSpace
from tests.finetune.models import tiny_llama
from tests.finetune.test_finetune import make, quiet

CPU = torch.device("cpu")
MIXED = ["hqq3", "nf4"]


def test_budget_and_masks_are_those_of_peft() -> None:
    from peft.tuners.adalora.layer import RankAllocator as Theirs

    total, settings = 20, AdaLoraSettings(6, 2, warmup=0.1, final=0.4)
    first, last = settings.steps(total)
    draw = torch.Generator().manual_seed(0)
    holder, ours = torch.nn.Module(), {}
    for name in ("x", "y", "z"):
        block = torch.nn.Module()
        for which, shape in (("A", (6, 8)), ("B", (10, 6)), ("E", (6, 1))):
            block.register_module(f"lora_{which}", torch.nn.ParameterDict(
                {"default": torch.nn.Parameter(torch.randn(shape, generator=draw))}))
        holder.add_module(name, block)
        ours[name] = {w: torch.nn.Parameter(getattr(block, f"lora_{w}")["default"].detach().clone().squeeze(-1))
                      for w in ("A", "E", "B")}
    config = SimpleNamespace(beta1=settings.beta1, beta2=settings.beta2, tinit=first, tfinal=last, total_step=total,
                             deltaT=1, target_r=2)
    theirs, allocator = Theirs(holder, config, "default"), RankAllocator(ours, settings, total)
    for step in range(1, total + 1):
        for name in ours:
            for which in ("A", "E", "B"):
                gradient = torch.randn(ours[name][which].shape, generator=draw)
                twin = getattr(holder.get_submodule(name), f"lora_{which}")["default"]
                ours[name][which].grad = gradient
                twin.grad = gradient.reshape(twin.shape)
        allocator.observe(1.0)
        kept = allocator.masks()
        for name in ours:  # as the optimiser does after its update
            ours[name]["E"].data.masked_fill_(~kept[name], 0.0)
        budget, pattern = theirs.update_and_allocate(holder, step)
        assert settings.budget(step, total, 3) == budget
        if pattern is not None:
            assert {n: k.tolist() for n, k in kept.items()} == {n: pattern[f"{n}.lora_E.default"] for n in ours}
            assert sum(int(k.sum()) for k in kept.values()) == budget
    assert sum(int(k.sum()) for k in allocator.kept.values()) == 6
    assert len({int(k.sum()) for k in allocator.kept.values()}) > 1


def test_the_layers_gradients_are_those_of_plain_operations() -> None:
    model, spec = tiny_llama(layers=1)
    bank = LayerBank(model, spec, [parse_format("hqq3")], torch.float32, CPU)
    bank.install({spec.linears[0].name: "hqq3"})
    base = model.get_submodule(spec.linears[0].name)
    draw = torch.Generator().manual_seed(2)
    x, down, up = (torch.randn(s, generator=draw).requires_grad_() for s in ((5, 64), (3, 64), (base.out_features, 3)))
    values = torch.randn(3, generator=draw).requires_grad_()
    out = TripletLora.apply(x, down, values, up, base, 2.0)  # type: ignore[no-untyped-call]
    expected = x @ base.unpack().t() + 2.0 * (x @ down.t() * values) @ up.t()
    torch.testing.assert_close(out, expected)
    weights = torch.randn(out.shape, generator=draw)
    ours = torch.autograd.grad((out * weights).sum(), (x, down, values, up))
    torch.testing.assert_close(ours, torch.autograd.grad((expected * weights).sum(), (x, down, values, up)))


def test_the_regularisers_gradient_is_autograds() -> None:
    draw = torch.Generator().manual_seed(3)
    named = {w: torch.nn.Parameter(torch.randn(s, generator=draw)) for w, s in (("A", (3, 8)), ("E", (3,)),
                                                                               ("B", (6, 3)))}
    allocator = RankAllocator({"m": named}, AdaLoraSettings(3, 1), 10)
    optimizer = AdaLoraOptimizer(UnitwiseAdamW([(named, 1e-3)], AdamWSettings()), allocator)
    for p in named.values():
        p.grad = torch.zeros_like(p)
    optimizer._regularise(0.25)
    a, b, eye = named["A"], named["B"], torch.eye(3)
    loss = 0.5 * (torch.linalg.matrix_norm(a @ a.t() - eye) + torch.linalg.matrix_norm(b.t() @ b - eye)) / 2
    for p, gradient in zip((a, b), torch.autograd.grad(loss, (a, b)), strict=True):
        torch.testing.assert_close(p.grad * 0.25, gradient)


def test_what_is_left_computes_the_same_as_the_masked_triplets() -> None:
    model, spec = tiny_llama()
    names = [m.name for m in spec.linears]
    bank = LayerBank(model, spec, [], torch.float32, CPU)
    bank.install({n: ("hqq3", "nf4", "int8")[i % 3] for i, n in enumerate(names)})
    attach(model, dict.fromkeys(names, 4), 2.0, 0, torch.float32)
    parameters = make_triplets(model, 0)
    draw = torch.Generator().manual_seed(1)
    kept = {}
    for i, (name, named) in enumerate(parameters.items()):
        kept[name] = torch.rand(4, generator=draw) < 0.5 if i else torch.zeros(4, dtype=torch.bool)
        named["E"].data.copy_(torch.randn(4, generator=draw) * kept[name])
    before = model(input_ids=torch.arange(8)[None]).logits
    ranks = realise(model, kept)
    assert ranks == {n: int(k.sum()) for n, k in kept.items()}
    assert ranks[names[0]] == 0
    torch.testing.assert_close(model(input_ids=torch.arange(8)[None]).logits, before)
    for name, layer in lora_layers(model).items():
        assert layer.lora_A["default"].weight.shape[0] == max(1, ranks[name])
    detach(model)


def test_ranks_change_and_their_sum_is_the_target() -> None:
    oracle = make()
    task = {"formats": MIXED, "initial_rank": 4, "target_rank": 2, "steps": 8, "train_seed": 3, "split": "validation",
            "measure": False, "progress": quiet}
    found = evaluate_adalora(oracle, learning_rate=4 * 5e-3, **task)  # type: ignore[arg-type]
    linears = len(oracle.bank.spec.linears)
    assert found["state"] == "ok"
    assert sum(found["ranks"].values()) == 2 * linears
    assert found["average_rank"] == 2.0
    assert len(set(found["ranks"].values())) > 1  # not the same everywhere: it was decided
    assert found["training_tokens"] == 8 * 2 * 32
    again = evaluate_adalora(make(), learning_rate=4 * 5e-3, **task)  # type: ignore[arg-type]
    assert {**again, "seconds": 0} == {**found, "seconds": 0}
    start = evaluate_adalora(make(), learning_rate=5e-12, **task)  # type: ignore[arg-type]
    assert found["loss"] < start["loss"]  # it learns
    assert evaluate_adalora(oracle, learning_rate=1e27, **task)["state"] == "diverged"  # type: ignore[arg-type]


@pytest.mark.parametrize("scope", ["peak", "stored"])
def test_measured_bytes_lie_within_the_predicted(scope: str) -> None:
    oracle = make()
    object.__setattr__(oracle.settings, "scope", scope)
    found = evaluate_adalora(oracle, MIXED, 6, 4, 5, 0, "test", 1.0, True, quiet)
    shape = TrainShape(2, 32, False, 4, logits_chunk=16)
    memory = MemoryModel(oracle.bank.spec, shape, scope)
    space = SearchSpace(oracle.units, oracle.formats, (1,))
    predicted = adalora_bytes(memory, space, MIXED, 6, 4)
    assert found["measured_bytes"] <= predicted * 1.005
    assert predicted <= found["measured_bytes"] * 1.05
    assert adalora_bytes(memory, space, MIXED, 6, 3) <= predicted
