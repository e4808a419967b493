"""Small HTML tables for notebooks."""

from collections.abc import Iterable, Sequence
from html import escape


def html_table(title: str, columns: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Return an HTML table with a caption; cells are escaped."""
    body = "".join(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    head = "".join(f"<th>{escape(str(column))}</th>" for column in columns)
    return f"<table><caption>{escape(title)}</caption><tr>{head}</tr>{body}</table>"
