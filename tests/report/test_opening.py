import io

from rich.console import Console

from qra_bo.report.opening import BAR, Need, print_needs, print_passage


def lines_of(printing, *arguments):
    out = io.StringIO()
    printing(Console(file=out, width=300), *arguments)
    return out.getvalue().splitlines()


def test_needs_are_bars_of_the_budget():
    title, half, over = lines_of(print_needs, "needs", 100, [Need("hqq2", 2, 50, 7), Need("int8", 8, 101, 0)])
    assert title == "needs"
    assert half.count("#") == BAR // 2
    assert half.endswith("with rank 1: fits, up to rank 7")
    assert over.count("#") == BAR
    assert "]>" in over
    assert over.endswith("does not fit")


def test_passage_is_short_and_can_not_command_the_terminal():
    head, first, second = lines_of(print_passage, "30 plays", "KING:\n\n\x1b[31m" + 1000 * "a")
    assert head.startswith("Data: 30 plays")
    assert first == "  | KING:"
    assert "\x1b" not in second
    assert len(second) < 420
