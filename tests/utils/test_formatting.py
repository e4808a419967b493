"""Values of overrides are what Hydra reads back."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from qra_bo.utils.formatting import override_value


@pytest.mark.parametrize("text", ["outputs/run-1", "/data/a_b.c", "../x", "été", "運行/1", "seed=1,budget=8GB", "a b",
                                  ".5", "1e5", "[x]", "a;$(c)", "it's", 'say "no"', 'back\\', 'a\\"b', "a\\b", "~/x",
                                  "{}"])
def test_hydra_reads_back_what_is_written(text: str) -> None:
    assert OverridesParser.create().parse_override(f"out={override_value(text)}").value() == text
