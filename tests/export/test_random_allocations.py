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
from qra_bo.export.comparison import Reference
from qra_bo.export.gguf_blocks import form_of, is_exact
from qra_bo.export.registry import TARGETS
from qra_bo.memory.formats import FORMATS, parse_format
from qra_bo.memory.serving import CONSUMERS
from qra_bo.utils.errors import ConfigError
from tests.export.allocations import TOKENS, VOCABULARY, build, check_refusal, make_case


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


def reload_or_refuse(number: int, target: str, folder: Path) -> bool:
    """Export a case and load it again by its consumer, or check its refusal; return whether it was exported."""
    promise = PROMISES[target]
    run = replace(build(make_case(number, tuple(filter(promise.holds, FORMATS))), folder),
                  gguf=("base", "adapter", "base-f32"))
    names = {record.format.name for record in run.manifest.modules.values()}
    try:
        TARGETS[target].write(run)
    except ConfigError as error:
        check_refusal(str(error), target, names, promise.holds)
        return False
    loader = TARGETS[target].loader
    assert loader is not None
    ids = torch.from_numpy(np.random.default_rng(number).integers(0, VOCABULARY, TOKENS))
    rows = list(loader.rows(target, run, Reference(run, ids)))
    assert rows
    for row in rows:
        assert row.largest is not None, f"case {number}: {row}"
        assert row.largest <= promise.bound(row.what, all(map(promise.holds, names))), f"case {number}: {row}"
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
    assert any([reload_or_refuse(number, target, tmp_path / str(number)) for number in range(6)])


@pytest.mark.slow
@pytest.mark.parametrize("first", range(6, 306, 100))
@pytest.mark.parametrize("target", PROMISES)
def test_many_random_allocations(target: str, first: int, tmp_path: Path) -> None:
    exported = [reload_or_refuse(number, target, tmp_path / str(number)) for number in range(first, first + 100)]
    assert any(exported)
    assert not all(exported)
