"""Notebook views of a result: one line of text, one table, everything escaped."""

from qra_bo.pipeline.run import Result
from qra_bo.report.text import allocation_html, allocation_text
from tests.export.fixtures import best_json


def test_text_has_loss_interval_and_memory():
    text = allocation_text(best_json())
    assert text.startswith("mixed allocation of tiny: loss 4.0100, \u22120.0120 nats against the best uniform baseline")
    assert text.endswith("1.90 MB of 2.00 MB (peak)")
    assert "nats" not in allocation_text(best_json(versus_best_uniform=None))
    same = {"mean": 0.0, "low": 0.0, "high": 0.0, "train_seeds": 5, "steps": 24}
    assert "nats" not in allocation_text(best_json(winner_kind="uniform", versus_best_uniform=same))
    assert ": no loss measured; 1.90 MB" in allocation_text(best_json(loss=None, versus_best_uniform=None))


def test_table_has_a_row_a_group_of_units_and_escapes_names():
    page = allocation_html(best_json(model="<b>x</b>", bits=[4, 4], ranks=[8, 8], formats=[
        {"name": "nf4", "backend": "bitsandbytes", "bits": 4}] * 2))
    assert "&lt;b&gt;x&lt;/b&gt;" in page
    assert page.count("<tr>") == 2
    assert "<td>0\u20131</td>" in page


def test_result_shows_its_allocation(tmp_path):
    result = Result(tmp_path, best_json(), 0)
    assert repr(result) == f"Result({tmp_path}: {allocation_text(best_json())})"
    assert result._repr_html_() == allocation_html(best_json())
