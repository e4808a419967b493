"""Tables of README and pages are those of the committed results, and what they name exists."""

import re
from dataclasses import fields

from bench.choices import markdown
from bench.pages.blocks import DOCS, read, refreshed
from bench.pages.tables import TABLES
from qra_bo.execution.base import ProfileResult
from qra_bo.memory.formats import FORMATS
from qra_bo.study.events import FinishedTrial, Provenance
from qra_bo.study.lines import KINDS, decode, encode
from qra_bo.trials import RESERVED
from tests.report.test_golden import best, events

PAGES = sorted(DOCS.rglob("*.md"))


def test_tables_are_of_the_committed_results() -> None:
    old = [page for page in PAGES if (text := page.read_text(encoding="utf-8")) != refreshed(text, TABLES)]
    assert old == [], "python -m bench.pages writes the tables anew"
    assert markdown(read("simple_choices")["rows"]) in (DOCS.parent / "README.md").read_text(encoding="utf-8")


def test_the_site_lists_every_page_once() -> None:
    listed = re.findall(r"^ +- .*: (\S+\.md)$", (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8"), re.M)
    assert sorted(listed) == sorted(page.relative_to(DOCS).as_posix() for page in PAGES)


def test_every_kind_of_format_is_in_the_reference() -> None:
    page = (DOCS / "reference" / "memory.md").read_text(encoding="utf-8")
    kinds = {name.rstrip("-g0123456789") for name, fmt in FORMATS.items() if fmt.bits < 16}
    missing = sorted(kind for kind in kinds if not re.search(rf"`{kind}[\d{{`]", page))
    assert not missing, f"add a row of {missing} to the storage formats of docs/reference/memory.md"


def test_journal_and_result_have_the_fields_that_their_page_names() -> None:
    first, second = (DOCS / "reference" / "journal.md").read_text(encoding="utf-8").split("## best.json")
    rows = {kind: set(re.findall(r"`(\w+)`", named))
            for kind, named in re.findall(r"^\| `(\w+)` \|.*?\|(.*)", first, re.M)}
    rows["header"] = rows["header"] - {"extension"} | rows["extension"]
    rows["trial"] -= {"workers", "sequence_losses"}
    written = {event.kind: set(encode(event.record)) - RESERVED - {"schema_version"} for event in map(decode, events())
               if isinstance(event.record, ProfileResult | FinishedTrial)}
    assert rows.pop("provenance")
    assert rows == written | {kind: {field.name for field in fields(record)} for kind, record in KINDS.items()
                              if record not in (ProfileResult, FinishedTrial, Provenance)}
    assert set(re.findall(r"`(\w+)`", second)) == set(best())
