"""Wheels to carry and lowest pins."""

from pathlib import Path

from scripts.gpu_wheels import LIMIT, calls, closure, divide, wanted


def test_what_the_other_machine_lacks_is_carried() -> None:
    names = {text.partition("==")[0] for text in wanted()}
    assert {"bitsandbytes", "hqq", "hydra-core", "omegaconf", "antlr4-python3-runtime", "pymoo", "gguf", "pydantic",
            "pydantic-core", "xxhash", "datasets", "pyarrow"} <= names
    assert not names & {"torch", "transformers", "peft", "numpy", "safetensors", "scipy", "setuptools"}
    assert closure(["omegaconf"]) == {"omegaconf", "antlr4-python3-runtime", "pyyaml"}


def test_calls_hold_every_byte_once_and_keep_the_limit() -> None:
    sizes = [("a", 150), ("b", 60), ("c", 45), ("d", 40), ("e", 1)]
    made = calls(sizes, 100)
    assert all(sum(last - first for _, first, last in call) <= 100 for call in made)
    pieces = sorted(piece for call in made for piece in call)
    assert pieces == [("a", 0, 100), ("a", 100, 150), ("b", 0, 60), ("c", 0, 45), ("d", 0, 40), ("e", 0, 1)]
    assert len(made) == 3
    assert calls([("x", LIMIT)]) == [[("x", 0, LIMIT)]]


def test_pieces_join_to_the_wheel(tmp_path: Path) -> None:
    content = bytes(range(250))
    (tmp_path / "big.whl").write_bytes(content)
    (tmp_path / "small.whl").write_bytes(b"ab")
    folders = divide(tmp_path, 100)
    assert [f.name for f in folders] == ["call-1", "call-2", "call-3"]
    parts = sorted(tmp_path.glob("*/big.whl.part*"), key=lambda p: p.name)
    assert b"".join(p.read_bytes() for p in parts) == content
    assert [p.read_bytes() for p in tmp_path.glob("*/small.whl")] == [b"ab"]
