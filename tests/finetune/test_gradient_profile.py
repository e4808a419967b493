"""Sensitivities from gradients against direct passes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qra_bo.finetune import gradient_profile
from qra_bo.finetune.cache import TensorStore
from qra_bo.finetune.gradient_profile import measure_by_gradients
from qra_bo.finetune.profiling import Measurement, measure_quantization_sensitivity
from qra_bo.finetune.quantization.bank import LayerBank
from qra_bo.finetune.training.loss import hidden_states, logits_of
from qra_bo.memory.formats import parse_format
from qra_bo.oracle.protocol import quiet
from qra_bo.space import make_units
from tests.finetune.models import tiny_llama
from tests.finetune.test_measure import IDS, LABELS, TEXT

FORMATS = (parse_format("hqq4"), parse_format("int8"), parse_format("fp16"))


@pytest.fixture(autouse=True)
def _on_all_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qra_bo.finetune.profiling.settled", lambda kl: False)


def measured(granularity: str, dtype: torch.dtype = torch.float32, **given: Any) -> tuple[Measurement, Measurement]:
    """Return what gradients and what direct passes give."""
    model, spec = tiny_llama(layers=3, dtype=dtype)
    bank, units = LayerBank(model, spec, FORMATS, dtype, "cpu"), make_units(spec, granularity)
    return (measure_by_gradients(bank, units, FORMATS, TEXT, quiet, **given),
            measure_quantization_sensitivity(bank, units, FORMATS, TEXT, quiet))


@pytest.mark.parametrize(("granularity", "dtype", "off"), [
    ("layer", torch.float32, 1.1), ("layer", torch.bfloat16, 1.2), ("block", torch.float32, 1.2),
    ("module", torch.float32, 1.4)])
def test_gradients_give_the_divergences_of_direct_passes(granularity: str, dtype: torch.dtype, off: float,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient_profile, "DRAWS", 64)
    mine, direct = measured(granularity, dtype)
    ratio = mine.kl[:, :2] / direct.kl[:, :2]
    assert ratio.max() < off
    assert ratio.min() > 1 / off
    assert np.median(ratio, axis=0) == pytest.approx(1, abs=.1)
    apart = np.abs(mine.rise - direct.rise)[:, :2] / direct.se[:, :2]
    assert apart[:, 0].max() < 2
    assert apart[:, 1].max() < .2  # the smaller the change, the less is beyond the first order
    for values in mine[:3]:
        assert (values[:, 2] == 0).all()
    assert mine.base_loss == pytest.approx(direct.base_loss, rel=1e-5)
    assert (mine.sequences, mine.direct) == (4, ())
    assert 0 < mine.drawn_error < .1


def test_a_format_that_gradients_get_wrong_is_measured_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    real = gradient_profile._apart
    monkeypatch.setattr(gradient_profile, "_apart", lambda mine, direct: real(mine, direct * [3, 1, 1]))
    mine, direct = measured("layer")
    assert mine.direct == ("hqq4",)
    for ours, theirs in zip(mine[:3], direct[:3], strict=True):
        np.testing.assert_array_equal(ours[:, 0], theirs[:, 0])
        assert (ours[:, 1] != theirs[:, 1]).all()


def test_values_that_are_no_numbers_are_measured_directly() -> None:
    estimate, direct = np.array([[np.nan, .1, 0.]]), np.array([[.1, .1, 0.]])
    assert gradient_profile._apart(estimate, direct).tolist() == [True, False, False]


def test_a_killed_profile_from_gradients_keeps_the_parts_that_ended(tmp_path: Path,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = measured("layer")
    store, real, calls = TensorStore(tmp_path, {}), gradient_profile._sums, list[int]()

    stop_after = 2

    def sums(*args: Any) -> Any:
        if len(calls) == stop_after:
            raise KeyboardInterrupt
        calls.append(args[6])
        return real(*args)

    monkeypatch.setattr(gradient_profile, "_sums", sums)
    with pytest.raises(KeyboardInterrupt):
        measured("layer", kept=store)
    stop_after = 99
    again, _ = measured("layer", kept=store)
    assert calls == [0, 1, 2, 3]
    np.testing.assert_array_equal(again[:3], whole[:3])
    assert again[3:] == whole[3:]


def test_gradients_pass_a_head_that_scales_and_caps() -> None:
    model, _ = tiny_llama()
    model.config.logit_scale, model.config.final_logit_softcapping = 0.5, 2.0
    final = hidden_states(model, torch.from_numpy(IDS)).detach()
    goal = torch.from_numpy(LABELS)
    found, losses = gradient_profile._at_the_head(model, final, goal, 5, np.random.default_rng(0))
    hidden = final.clone().requires_grad_()
    raw = model.get_output_embeddings()(hidden[:, :-1]) * 0.5
    log_p = torch.log_softmax(2.0 * torch.tanh(raw / 2.0), -1)
    np.testing.assert_allclose(log_p.detach(), torch.log_softmax(logits_of(model, final[:, :-1].reshape(-1, 64)), -1)
                               .view_as(log_p), atol=1e-5)
    picked = log_p.gather(-1, goal[:, 1:].clamp(min=0).unsqueeze(-1)).squeeze(-1) * (goal[:, 1:] != -100)
    picked.sum().backward()
    torch.testing.assert_close(found[-1], hidden.grad, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(losses, -picked.sum(-1).detach(), rtol=1e-4, atol=1e-4)
