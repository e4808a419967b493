"""The export for bitsandbytes holds the weights that the run trained on, whatever the types of file and computation."""

from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from qra_bo.export import bitsandbytes
from qra_bo.export.comparison import Reference, plain_model
from qra_bo.export.load import load, packed_linears
from qra_bo.export.registry import export_all
from qra_bo.finetune.data.load import byte_tokenizer
from qra_bo.finetune.manifest import PACKED, read_manifest
from qra_bo.utils.errors import OutputError
from tests.export.allocations import Case, base_folder, build, build_on

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def check_weights(run: Path) -> None:
    """Compare codes, their scales and 16-bit weights of the bitsandbytes export with the run's own."""
    model, own = plain_model(run / "export" / "bitsandbytes", False, "auto"), load(run, adapter=False)[0]
    for name, record in read_manifest(run).modules.items():
        weight, state = model.get_submodule(name).weight, own.get_submodule(name).packed_state()
        found = {"codes": weight.data}
        if record.format.name == "nf4":
            outer = weight.quant_state
            found |= {"absmax": outer.absmax, "nested_absmax": outer.state2.absmax, "offset": outer.offset}
        assert found.keys() == state.keys()
        for key, tensor in found.items():
            assert tensor.dtype == state[key].dtype, (name, key)
            assert torch.equal(tensor.flatten(), state[key].flatten()), (name, key)


@pytest.mark.parametrize("number", [1, 2], ids=["packed again", "packed"])
@pytest.mark.parametrize(("file", "compute"), [("float16", "bfloat16"), ("float32", "float32"), ("float16", "float32"),
                                               ("bfloat16", "float32"), ("float32", "float16")])
def test_weights_are_those_of_the_run(tmp_path: Path, file: str, compute: str, number: int) -> None:
    base = AutoModelForCausalLM.from_pretrained(base_folder("qwen2", False, 2), dtype=torch.float32)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.mul_(1.001)  # no longer weights of 8 significant bits
    base.to(getattr(torch, file)).save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    node = {"name": "qwen2", "source": "path", "path": str(tmp_path / "base"), "gguf_file": None, "revision": None,
            "trust_remote_code": False}
    run = build_on(node, Case(number, "qwen2", False, 2, compute, ("nf4", "fp16"), (2, 0, 3)), tmp_path / "run")
    assert (run.folder / PACKED).exists() == (number == 2)
    export_all(run.folder, ["bitsandbytes"])
    check_weights(run.folder)
    [row] = bitsandbytes.LOADER.rows("bitsandbytes", run, Reference(run, torch.arange(12)))
    assert row.kl is not None, row.note
    assert row.kl < 1e-3


def test_16_bit_layers_of_two_types_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = build(Case(1, "qwen2", True, 2, "float32", ("nf4", "fp16"), (2, 0, 3)), tmp_path / "run")

    def of_two_types(*args: Any) -> Any:
        dtypes = cycle((torch.float16, torch.bfloat16))
        for name, linear, state in packed_linears(*args):
            yield name, linear, state if len(state) > 1 else {"codes": state["codes"].to(next(dtypes))}

    monkeypatch.setattr(bitsandbytes, "packed_linears", of_two_types)
    with pytest.raises(OutputError, match=r"in one type, .* bfloat16 and in float16; load the run with qra_bo\.load"):
        export_all(run.folder, ["bitsandbytes"])
    assert not (run.folder / "export" / "bitsandbytes").exists()
