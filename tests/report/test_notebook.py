"""Notebook views of a result: one line of text, one table, everything escaped."""

from qra_bo.pipeline.run import Result
from qra_bo.report.text import allocation_html, allocation_text
from tests.export.fixtures import best_json


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
