"""Summary placeholder."""

from pathlib import Path

from qra_bo.config.schema import RunConfig


def publish(folder: Path, config: RunConfig) -> None:
    """Write nothing yet."""
