"""Priors that come with the package, learned from tables of real evaluations, by name."""

from pathlib import Path


def shipped_priors() -> dict[str, Path]:
    """File of every prior, by its name."""
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.json"))}


def prior_file(given: str) -> Path:
    """The file that ``surrogate.prior`` names: one that comes with the package, or the user's own."""
    return shipped_priors().get(given) or Path(given).expanduser()
