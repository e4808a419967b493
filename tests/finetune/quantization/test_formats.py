"""Bytes of storage formats against hand-computed numbers; the conformance suite holds them to real storages."""

from dataclasses import asdict

import pytest

from qra_bo.finetune.quantization.base import backend_of
from qra_bo.memory import formats
from qra_bo.memory.formats import BACKENDS, FORMATS, check_shape, format_from_json, matrix_bytes, parse_format
from qra_bo.space import StorageFormat
from qra_bo.utils.errors import ConfigError, SpaceError


@pytest.mark.parametrize(("name", "shape", "weights", "metadata"), [
    # 4096 x 4096 = 2^24 weights, 2^18 blocks of 64, 2^10 second-level scales, one offset.
    ("nf4", (4096, 4096), 2**23, 2**18 + 4 * 2**10 + 4),
    ("nf4-nodq", (4096, 4096), 2**23, 4 * 2**18),
    ("int8", (11008, 4096), 11008 * 4096, 4 * 11008),
    ("hqq4", (4096, 4096), 2**23, 4 * 2**18),
    ("hqq2-g32", (4096, 4096), 2**22, 4 * 2**19),
    ("hqq8-g128", (4096, 4096), 2**24, 4 * 2**17),
    # 576 x 576 / 64 = 5184 groups, 519 words of ten (the last not full) for each of 64 columns.
    ("hqq3", (576, 576), 519 * 64 * 4, 4 * 5184),
    # 5184 groups: 2592 bytes of two upper halves and 648 of eight lowest bits for each of 64 columns.
    ("hqq5", (576, 576), (2592 + 648) * 64, 4 * 5184),
    ("hqq6-g128", (4096, 4096), 2**24 * 6 // 8, 4 * 2**17),
    ("fp16", (576, 192), 2 * 576 * 192, 0),
    # 33 x 66 = 2178 weights: 35 blocks, the last of 2.
    ("nf4-nodq", (33, 66), 1089, 4 * 35),
    ("nf4", (33, 66), 1089, 35 + 4 + 4),
    ("sym3-g64", (4096, 4096), 2**24 * 3 // 8, 2 * 2**18),  # 3.25 bits a weight
    ("sym2-g128", (256, 128), 256 * 32, 2 * 256), ("sym8-g32", (5, 64), 320, 2 * 10),
    ("int4-g32", (8, 64), 256, 3 * 16), ("int4-g64", (4096, 4096), 2**23, 3 * 2**18),
    # 3 groups: one byte of four codes of 2 bits and one of eight of 1 bit, padded to 8 groups, for each of 64 columns.
    ("int3-g64", (3, 64), (2 + 1) * 64, 3 * 3),
])
def test_bytes_by_hand(name: str, shape: tuple[int, int], weights: int, metadata: int) -> None:
    fmt = parse_format(name)
    assert matrix_bytes(fmt, *shape) == (weights, metadata)


def test_a_backend_that_planning_lacks_is_an_error() -> None:
    fmt = StorageFormat("fp4-g32", "fp4", 4, 32)
    for refused in (lambda: matrix_bytes(fmt, 64, 64), lambda: formats.scratch_bytes(fmt, 64, 64, "cpu", 2),
                    lambda: formats.planes_of(fmt), lambda: backend_of(fmt)):
        with pytest.raises(ConfigError, match="'fp4', which BACKENDS of"):
            refused()
    with pytest.raises(SpaceError, match="other3 stands for the formats of a file"):
        matrix_bytes(parse_format("other3"), 64, 64)


def test_names_are_keys_and_json_round_trips() -> None:
    named = [(fmt.name, fmt.backend) for backend in BACKENDS.values() for fmt in backend.formats]
    assert len(dict(named)) == len(named)
    assert all(fmt in BACKENDS[fmt.backend].formats for fmt in FORMATS.values())
    for name, fmt in FORMATS.items():
        assert fmt.name == name
        assert format_from_json(asdict(fmt)) == fmt


@pytest.mark.parametrize(("name", "shape", "multiple"), [
    ("nf4", (4, 5), 2), ("hqq4", (3, 64), 128), ("hqq2", (6, 32), 256), ("hqq3", (5, 33), 64), ("hqq5", (4, 64), 512),
    ("hqq6", (2, 64), 256), ("sym4-g128", (64, 576), 128),
])
def test_shapes_that_do_not_pack(name: str, shape: tuple[int, int], multiple: int) -> None:
    with pytest.raises(SpaceError, match=f"multiples of {multiple};"):
        check_shape(parse_format(name), *shape)
