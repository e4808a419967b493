"""One file, offline, escaped, and whole: checked by a parser rather than by eye."""

import json
import re
from html.parser import HTMLParser

import pytest

from qra_bo.report import html
from qra_bo.report.data import parse_events
from qra_bo.report.html import render_html, write_report
from tests.report.fixtures import make_events, write_run

VOID = {"meta", "img", "source", "br", "link", "input"}


class Page(HTMLParser):
    """Collects elements and checks that tags nest."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a whole run with its report."""
    folder = write_run(tmp_path_factory.mktemp("report") / "run", make_events())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(html, "write_plots", lambda figures, folder: [])  # takes longest
        assert {p.name for p in write_report(folder)} == {"report.html", "report.json"}
    assert not list(folder.glob("*.part"))
    return folder


@pytest.fixture(scope="module")
def page(run):
    return Page((run / "report.html").read_text())


def test_nothing_is_fetched(page):
    for _, attrs in page.elements:
        for name in ("src", "srcset", "href", "xlink:href", "data", "action", "poster"):
            value = attrs.get(name) or ""
            assert value.startswith(("#", "data:image/")) or not value
    assert "@import" not in "".join(page.text)
    assert not re.search(r"url\((?!#)", "".join(page.text))


def test_tags_nest_ids_are_unique_and_links_lead_somewhere(page):
    assert page.open == []
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for a in page.all("a")} <= set(ids)
    assert {a["aria-labelledby"] for _, a in page.elements if "aria-labelledby" in a} <= set(ids)


def test_every_trial_is_there_and_no_code_of_the_template(page):
    cells = [a for a in page.all("td") if "data-key" in a]
    assert len(cells) == 16 * sum(e["event"] == "trial" for e in make_events())
    assert "{{" not in "".join(page.text)


def test_data_for_scripts_agree_with_the_journal(run):
    data, d = json.loads((run / "report.json").read_text()), parse_events(make_events())
    assert data["answer"]["tone"] == "better"
    assert [u["rank"] for u in data["units"]] == list(d.winner.ranks)
    assert [t["loss"] for t in data["trials"]] == [e.loss for e in d.study.trials]
    assert data["cost"]["cost"] == d.study.cost.tokens
    assert data["surrogate_check"]["coverage_50"] == .6
    assert "crc" not in data["surrogate_check"]


def test_whatever_the_journal_holds_is_escaped():
    evil = "<script>alert(1)</script>"
    events = make_events(model=evil)[:8]
    events.insert(5, {**events[4], "event": "warning", "message": evil})
    text = render_html(parse_events(events), {})
    assert evil not in text
    assert "&lt;script&gt;alert(1)" in text
    assert len(Page(text).all("script")) == 1


def test_a_running_search_and_a_journal_cut_off_can_be_reported(tmp_path):
    run = write_run(tmp_path / "run", make_events(finished=False)[:6])
    with (run / "trials.jsonl").open("ab") as file:
        file.write(b'{"event": "evalu')
    write_report(run)
    page = Page((run / "report.html").read_text())
    assert "cut off" in "".join(page.text)
