"""The mixed base as plain transformers loads it: the run's own logits, with and without the adapter."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from qra_bo.export import vllm
from qra_bo.export.comparison import with_adapter
from qra_bo.export.compressed_tensors import FOLDER
from qra_bo.export.load import load
from qra_bo.export.run import FinishedRun
from tests.export.allocations import Case, build, rows_of
from tests.export.finished import exported

RUN = Case(5, "llama", False, 2, "bfloat16", ("sym2-g64", "sym3-g32", "fp16", "sym8-g64", "sym5-g64"), (1, 4, 0, 3))


@pytest.fixture(scope="module", name="run")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    run = build(RUN, tmp_path_factory.mktemp("symmetric"))
    exported(run.folder, ["compressed_tensors"])
    return run


def test_plain_transformers_computes_the_same_logits_in_16_bits(run: FinishedRun) -> None:
    ids = torch.arange(48)[None]
    plain = AutoModelForCausalLM.from_pretrained(str(run.folder / FOLDER), dtype=torch.bfloat16)
    mixed = load(run.folder, adapter=False)[0]
    mixed.set_attn_implementation("sdpa")  # the kernel that plain transformers takes
    with torch.no_grad():
        assert torch.equal(plain.eval()(input_ids=ids).logits, mixed(input_ids=ids).logits)
        own, found = (with_adapter(model, run.adapter).eval()(input_ids=ids).logits for model in (mixed, plain))
    assert torch.equal(found, own)


def test_an_adapter_of_one_rank_computes_the_same_logits(run: FinishedRun) -> None:
    folder = run.folder / vllm.FOLDER
    folder.mkdir(parents=True)
    vllm.write_adapter(run, folder)
    [row] = rows_of(run, "vllm", torch.arange(48))
    assert row.largest < 1e-4
