"""Limits as they are written, and what is said of those that can't be read."""

from bench.table1.limits import Limit, parse_limit


def test_limits_are_read() -> None:
    assert parse_limit("peak uniform:4,16 <=4") == Limit("peak uniform:4,16 <=4", "peak", "uniform:4,16", 4.0, None)
    assert parse_limit("  stored   10GB ") == Limit("stored 10GB", "stored", "10GB", None, None)
    assert parse_limit("peak 512MB <=3.5 for qra_bo,loftq") == Limit("peak 512MB <=3.5", "peak", "512MB", 3.5,
                                                                   ("qra_bo", "loftq"))
    assert parse_limit("free for qra_bo") == Limit("free", "peak", None, None, ("qra_bo",))
