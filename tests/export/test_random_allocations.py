"""Random allocations by the programs that load exports: the run's own logits, or one clear refusal."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from gguf.quants import dequantize

from qra_bo.export import gguf
from qra_bo.export.gguf_blocks import form_of, is_exact
from qra_bo.export.registry import TARGETS
from qra_bo.memory.formats import FORMATS, parse_format
from qra_bo.memory.serving import CONSUMERS
from qra_bo.utils.errors import ConfigError
from tests.export.allocations import TOKENS, VOCABULARY, Case, build, check_refusal, make_case, rows_of


@dataclass(frozen=True)
class Loaded:
    """What is promised of a target.

    Args:
        holds: Whether it holds a format, by its name; it may hold more.
        bound: Largest difference of logits of a row, by its name and whether the target holds all formats of the run.
    """

    holds: Callable[[str], bool]
    bound: Callable[[str, bool], float]


PROMISES: Mapping[str, Loaded] = {
    "compressed_tensors": Loaded(lambda name: CONSUMERS["transformers"].loads(FORMATS[name]), lambda what, exact: 0.0),
    "gguf": Loaded(lambda name: form_of(FORMATS[name], 128) is not None,  # activations of packed weights have 8 bits
                   lambda what, exact: 1e-3 if "f32" in what else 0.5),
    "mlx": Loaded(lambda name: CONSUMERS["mlx"].loads(FORMATS[name]),  # another order of sums, fp16 biases and products
                  lambda what, exact: 0.5 if "served" in what else 2e-5 if exact else 2e-2)}


def numbered(number: int, target: str) -> Case:
    return make_case(number, tuple(filter(PROMISES[target].holds, FORMATS)))


def reload_or_refuse(case: Case, target: str, folder: Path) -> bool:
    """Export a case and load it again by its consumer, or check its refusal; return whether it was exported."""
    promise = PROMISES[target]
    run = replace(build(case, folder / str(case.number)), gguf=("base", "adapter", "base-f32"))
    names = {record.format.name for record in run.manifest.modules.values()}
    try:
        TARGETS[target].write(run)
    except ConfigError as error:
        check_refusal(str(error), target, names, promise.holds)
        return False
    ids = torch.from_numpy(np.random.default_rng(case.number).integers(0, VOCABULARY, TOKENS))
    for row in rows_of(run, target, ids):
        assert row.largest is not None, f"{case}: {row}"
        assert row.largest <= promise.bound(row.what, all(map(promise.holds, names))), f"{case}: {row}"
    if target == "gguf":
        check_tensors(run.folder / gguf.FOLDER, 0 if all(is_exact(parse_format(name)) for name in names) else 1e-3)
    return True


def check_tensors(folder: Path, largest: float) -> None:
    """Check that the packed file holds the weights of the unpacked one."""
    packed, whole = ({t.name: dequantize(t.data, t.tensor_type) for t in GGUFReader(folder / f"{name}.gguf").tensors}
                     for name in ("base", "base-f32"))
    assert packed.keys() == whole.keys()
    for name, tensor in packed.items():
        assert np.abs(tensor - whole[name]).max() <= largest, name


@pytest.mark.parametrize("target", PROMISES)
def test_random_allocations_reload_equal_or_are_refused(target: str, tmp_path: Path) -> None:
    assert any([reload_or_refuse(numbered(number, target), target, tmp_path) for number in range(6)])
    for number, tied, bits in ((901, True, 6), (902, False, 8)):
        case = Case(number, "llama", tied, 2, "float32", ("sym4-g64",), (3, 0, 5), bits)
        assert reload_or_refuse(case, target, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(6, 306, 100))
@pytest.mark.parametrize("target", PROMISES)
def test_many_random_allocations(target: str, first: int, tmp_path: Path) -> None:
    exported = [reload_or_refuse(numbered(number, target), target, tmp_path) for number in range(first, first + 100)]
    assert any(exported)
    assert not all(exported)
