from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qra_bo.finetune import profiling
from qra_bo.finetune.cache import TensorStore
from qra_bo.finetune.memory_probe import PeakTracker
from qra_bo.finetune.models.activations import use_checkpointing
from qra_bo.finetune.profiling import leading_energy, measure_quantization_sensitivity, measure_rank_sensitivity
from qra_bo.finetune.quantization.bank import LayerBank
from qra_bo.finetune.training.loss import CalibrationText
from qra_bo.memory.formats import parse_format
from qra_bo.oracle.protocol import quiet
from qra_bo.space import make_units
from qra_bo.utils.errors import DeviceError, ModelError
from tests.finetune.models import tiny_llama

IDS = np.random.default_rng(0).integers(0, 97, (4, 12))
LABELS = np.where(np.arange(12) < 3, -100, IDS)


def calibration(ids: np.ndarray, labels: np.ndarray) -> CalibrationText:
    return CalibrationText(torch.from_numpy(ids), torch.from_numpy(labels), 2, 5)


TEXT = calibration(IDS, LABELS)


def made(*names: str, layers: int = 2, granularity: str = "block") -> tuple[LayerBank, Any, Any]:
    """A bank of these formats over a small model, the units of the model, and the formats."""
    (model, spec), formats = tiny_llama(layers=layers), tuple(map(parse_format, names))
    return LayerBank(model, spec, formats, torch.float32, "cpu"), make_units(spec, granularity), formats


def _log_p(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return torch.log_softmax(model(input_ids=torch.from_numpy(IDS)).logits[:, 2:-1].float(), -1)


@pytest.mark.parametrize("kept", [0, 2**30])
def test_sensitivity_is_of_the_model_with_one_unit_quantised(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "KEPT_LOG_PROBABILITIES", kept)
    monkeypatch.setattr(profiling, "settled", lambda kl: False)
    bank, units, formats = made("hqq2", "hqq4", "fp16", layers=3)
    rise, kl, se, base, spent, used, *_ = measure_quantization_sensitivity(bank, units, formats, TEXT, quiet)
    goal = torch.from_numpy(IDS[:, 3:]).unsqueeze(-1)
    dense = _log_p(bank.model)
    assert base == pytest.approx(-float(dense.gather(-1, goal).mean()), abs=1e-5)
    for u, unit in enumerate(units):
        for f, fmt in enumerate(formats[:2]):
            bank.install({m.name: fmt.name for m in unit.linears})
            changed = _log_p(bank.model)
            bank.restore_dense()
            assert rise[u, f] == pytest.approx(-float(changed.gather(-1, goal).mean()) - base, abs=1e-5)
            apart = (dense.exp() * (dense - changed)).sum(-1)
            assert kl[u, f] == pytest.approx(float(apart.mean()), abs=1e-5)
            rises = (dense - changed).gather(-1, goal).squeeze(-1)
            assert se[u, f] == pytest.approx(float(((rises - apart) ** 2).mean() / rises.numel()) ** 0.5, abs=1e-6)
    assert (rise[:, 2] == 0).all()
    assert (se[:, 2] == 0).all()
    assert spent == round(IDS.size * (1 + 2 / 3 + 2 * 2 * (1 + 2 / 3 + 1 / 3)))
    assert used == len(IDS)


def test_a_settled_order_of_units_ends_the_measurement() -> None:
    bank, units, formats = made("hqq2", "fp16", layers=3)
    ids = np.repeat(IDS[:1], 6, axis=0)  # equal sequences have equal orders
    seen: list[tuple[int, int]] = []
    found = measure_quantization_sensitivity(bank, units, formats, calibration(ids, ids),
                                             lambda _, done, total: seen.append((done, total)))
    alone = measure_quantization_sensitivity(bank, units, formats, calibration(ids[:1], ids[:1]), quiet)
    assert (found.sequences, alone.sequences) == (2, 1)
    np.testing.assert_allclose(found.kl, alone.kl, rtol=1e-5)
    assert seen == [(n, 36) for n in range(1, 13)] + [(36, 36)]


@pytest.mark.parametrize(("second", "expected"), [((1.0, 2.0, 3.0, 4.0), True), ((1.0, 2.0, 4.0, 3.0), False),
                                                  ((4.0, 3.0, 2.0, 1.0), False)])
def test_order_settles_by_the_agreement_of_the_halves(second: tuple[float, ...], expected: bool) -> None:
    first = (0.1, 0.2, 0.3, 0.4)
    kl = np.array([[[a, a] for a in first], [[a, b] for a, b in zip(first, second, strict=True)]])
    assert profiling.settled(kl) is expected  # Spearman's 0.8 is a reliability of 0.89
    assert profiling.settled(kl[:, :, :1])
    assert not profiling.settled(kl[:1])


def test_the_standard_error_is_that_of_text_that_the_model_draws() -> None:
    bank, units, formats = made("hqq2", granularity="layer")
    with torch.no_grad():
        odds = torch.softmax(bank.model.eval()(input_ids=torch.from_numpy(IDS)).logits[:, -2].float(), -1)
    generator = torch.Generator().manual_seed(0)
    rises, kls, errors = [], [], []
    for _ in range(200):
        ids = IDS.copy()
        ids[:, -1] = torch.multinomial(odds, 1, generator=generator).squeeze(1).numpy()  # drawn from the dense model
        labels = np.where(np.arange(12) < 11, -100, ids)
        text = calibration(ids, labels)
        found = measure_quantization_sensitivity(bank, units[:1], formats, text, quiet)
        rises.append(found.rise[0, 0])
        kls.append(found.kl[0, 0])
        errors.append(found.se[0, 0])
    assert np.ptp(kls) < 1e-7  # of all next tokens: which was drawn changes nothing
    off = np.array(rises) - kls[0]
    assert abs(off.mean()) < 3 * off.std() / 200**0.5
    assert off.std() == pytest.approx(float(np.mean(np.square(errors)) ** 0.5), rel=0.15)


def test_rank_sensitivity_is_the_spectrum_of_the_weight_gradient() -> None:
    bank, units, _ = made("hqq2", granularity="layer")
    model = bank.model
    bank.install({linear.name: "hqq2" for linear in bank.spec.linears})  # what trained before must not matter
    found, tokens = measure_rank_sensitivity(bank, units, TEXT, 5, quiet)
    assert tokens == IDS.size
    expected = np.zeros((len(units), 5))
    for start in (0, 2):
        for p in model.parameters():
            p.requires_grad_(True)
        ids, labels = torch.from_numpy(IDS[start:start + 2]), torch.from_numpy(LABELS[start:start + 2])
        model(input_ids=ids, labels=labels).loss.backward()
        for u, unit in enumerate(units):
            for linear in unit.linears:
                values = torch.linalg.svdvals(model.get_submodule(linear.name).weight.grad)[:5]
                expected[u] += np.cumsum(values.double().numpy() ** 2) / 2
        for p in model.parameters():
            p.requires_grad_(False)
            p.grad = None
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    use_checkpointing(model)
    again, _ = measure_rank_sensitivity(bank, units, TEXT, 5, quiet)
    np.testing.assert_array_equal(again, found)


def test_more_sequences_take_no_more_memory_than_their_hidden_states(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "KEPT_LOG_PROBABILITIES", 0)
    bank, units, formats = made("hqq2", layers=6)
    peaks = []
    for n in (2, 2, 24):  # the first packs the layers
        ids = np.random.default_rng(0).integers(0, 97, (n, 12))
        with PeakTracker() as tracker:
            tracker.track_existing(bank.model)
            measure_quantization_sensitivity(bank, units, formats, calibration(ids, ids), quiet)
        peaks.append(tracker.peak_bytes)
    states = 22 * 12 * bank.spec.hidden_size * 4
    assert peaks[2] - peaks[1] < 4 * states  # of the dense model at the end, and at one layer and at the next


def test_a_base_that_crosses_to_the_device_takes_two_sequences_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "settled", lambda kl: False)
    bank, units, formats = made("hqq2", granularity="layer")
    real, sizes = profiling.hidden_states, set[int]()

    def counted(model: Any, ids: torch.Tensor) -> torch.Tensor:
        sizes.add(len(ids))
        return real(model, ids)

    monkeypatch.setattr(profiling, "hidden_states", counted)
    alone = measure_quantization_sensitivity(bank, units, formats, TEXT, quiet)
    assert sizes == {1}
    monkeypatch.setattr(LayerBank, "streams", True)
    together = measure_quantization_sensitivity(bank, units, formats, TEXT, quiet)
    assert sizes == {1, 2}
    np.testing.assert_allclose(together.kl, alone.kl, rtol=1e-3)
    assert (together.sequences, together.forward_tokens) == (alone.sequences, alone.forward_tokens)


def test_a_killed_profile_goes_on_with_other_sequences_a_pass(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(profiling, "settled", lambda kl: False)
    (bank, units, formats), store = made("hqq2", granularity="layer"), TensorStore(tmp_path, {})

    def killed(_what: str, done: int, n: int) -> None:
        if done == n - 1:  # of four parts with a sequence each, all but one unit of the last are kept
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_quantization_sensitivity(bank, units, formats, TEXT, killed, store)
    monkeypatch.setattr(LayerBank, "streams", True)  # another program took the memory of the card
    found = measure_quantization_sensitivity(bank, units, formats, TEXT, quiet, store)
    expected = measure_quantization_sensitivity(bank, units, formats, TEXT, quiet)
    np.testing.assert_array_equal(found[:3], expected[:3])
    assert found.sequences == expected.sequences


@pytest.mark.parametrize(("part", "measure"), [("hidden_states", measure_quantization_sensitivity),
                                               ("each_gradient", measure_rank_sensitivity)])
def test_lack_of_memory_in_the_profile_is_a_device_error(part: str, measure: Callable[..., object],
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(profiling, part, full)
    bank, units, _ = made()
    arguments = (bank, units, (), TEXT) if part == "hidden_states" else (bank, units, TEXT, 2)
    with pytest.raises(DeviceError, match=r"on 2 sequences of 12 tokens at once.*lower train\.batch"):
        measure(*arguments, quiet)


def test_gradients_that_overflow_are_a_model_error() -> None:
    bank, units, _ = made()
    with torch.no_grad():  # as activations that exceed fp16
        bank.model.get_submodule(bank.spec.linears[-1].name).weight.fill_(torch.inf)
    with pytest.raises(ModelError, match=r"gradient of model\.layers.* not finite in float32.*another dtype"):
        measure_rank_sensitivity(bank, units, TEXT, 2, quiet)


@pytest.mark.parametrize(("tokens", "out", "inp"), [(6, 40, 30), (20, 40, 64), (30, 40, 64), (70, 12, 50), (1, 9, 9)])
def test_leading_energy_is_that_of_the_weight_gradient(tokens: int, out: int, inp: int) -> None:
    draw = torch.Generator().manual_seed(tokens)
    gradient, x = torch.randn(tokens, out, generator=draw), torch.randn(tokens, inp, generator=draw)
    x[1::2] = x[::2][:len(x[1::2])]  # equal tokens: neither Gram matrix has full rank
    values = torch.linalg.svdvals(gradient.double().t() @ x.double())[:8].square().numpy()
    expected = np.cumsum(np.pad(values, (0, max(0, 8 - len(values)))))
    np.testing.assert_allclose(leading_energy(gradient, x, 8), expected, rtol=1e-8 if 2 * tokens <= min(out, inp)
                               else 1e-5)
