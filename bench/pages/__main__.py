"""Write the tables of the documentation anew from the files in ``bench/results``.

    python -m bench.pages
"""

from bench.pages.blocks import DOCS, refreshed
from bench.pages.tables import TABLES


def main() -> None:
    """Write the pages that changed, and name them."""
    for path in sorted(DOCS.rglob("*.md")):
        text = path.read_text(encoding="utf-8")
        new = refreshed(text, TABLES)
        if new != text:
            path.write_text(new, encoding="utf-8")
            print(f"written: {path.relative_to(DOCS.parent)}")


if __name__ == "__main__":
    main()
