"""Exports of runs with a packed embedding: packed where the consumer has a place for it, and the run's own function."""

from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as Form
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from qra_bo.export import gguf, mlx
from qra_bo.export.comparison import Reference
from qra_bo.export.load import load
from qra_bo.export.run import FinishedRun
from qra_bo.export.weights import weights_of
from qra_bo.finetune.quantization.embeddings import packed_tables
from tests.export.finished import exported, finish

IDS = torch.arange(1, 49)


@pytest.fixture(scope="module", name="run", params=[(8, "true"), (6, "false")], ids=["8 bits, tied", "6 bits, untied"])
def make_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    bits, tied = request.param
    folder = finish(tmp_path_factory.mktemp("embeddings") / "run", ("sym4-g64",) * 4, (3, 0, 5, 8), "dtype=float32",
                    "quantizer.rounding=rtn", f"embeddings={bits}", f"model.tied={tied}")
    exported(folder, ["gguf", "mlx", "compressed_tensors"])
    return FinishedRun.read(folder)


def own_tables(run: FinishedRun) -> dict[str, torch.Tensor]:
    return {name: table.unpacked() for name, table in packed_tables(load(run.folder, adapter=False)[0]).items()}


def test_gguf_holds_packed_tables_exactly(run: FinishedRun) -> None:
    found = {str(t.name): t for t in GGUFReader(run.folder / gguf.FOLDER / "base.gguf").tensors}
    names = {"model.embed_tokens": "token_embd.weight", "lm_head": "output.weight"}
    tables = own_tables(run)
    for name, table in tables.items():
        tensor = found[names[name]]
        assert tensor.tensor_type == Form.Q8_0
        assert torch.equal(torch.from_numpy(dequantize(tensor.data, tensor.tensor_type)), table)
    assert ("output.weight" in found) == ("lm_head" in tables)


def test_llama_cpp_computes_the_runs_logits(run: FinishedRun) -> None:
    rows = gguf.LOADER.rows("gguf", run, Reference(run, IDS))
    assert rows
    for row in rows:
        assert row.kl is not None, row.note
        assert row.kl < 0.01


def test_mlx_computes_the_runs_logits(run: FinishedRun) -> None:
    model, _ = load(run.folder)
    with torch.no_grad():
        own = model(input_ids=IDS[None]).logits[0]
    found = mlx.mlx_logits(run.folder / mlx.FOLDER, IDS, adapted=True, fp32=True)
    assert float((found - own).abs().max()) < 2e-4
    tensors = load_file(run.folder / mlx.FOLDER / "model.safetensors")
    assert {name for name in tensors if name.endswith(".scales") and "layers" not in name} == {
        f"{name}.scales" for name in own_tables(run)}
    bits = next(iter(run.manifest.tables.values())).format.bits
    assert tensors["model.embed_tokens.weight"].shape == (512, 64 * bits // 32)


def test_compressed_tensors_has_the_tables_unpacked(run: FinishedRun) -> None:
    model = AutoModelForCausalLM.from_pretrained(str(run.folder / "compressed_tensors"), dtype=torch.float32)
    for name, table in own_tables(run).items():
        assert torch.equal(model.get_submodule(name).weight.float(), table)
    assert "no place for a packed embedding" in (run.folder / "compressed_tensors" / "README.md").read_text()


def test_weights_for_exporters_are_those_trained_on(run: FinishedRun, tmp_path: Path) -> None:
    weights = weights_of(run)
    tables = own_tables(run)
    assert weights.tables.keys() == tables.keys()
    for name, table in tables.items():
        assert torch.equal(weights.others[f"{name}.weight"], table)
        assert torch.equal(weights.tables[name].dense(torch.float32), table)
