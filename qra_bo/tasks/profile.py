"""``task=profile``: the sensitivities of every unit, measured or read from a file, as a table and ``profile.json``."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from qra_bo.config.schema import RunConfig
from qra_bo.report.text import DASH
from qra_bo.sensitivity.given import read_given
from qra_bo.sensitivity.io import MeasuredDamage, save_profile
from qra_bo.sensitivity.profile import SensitivityProfile
from qra_bo.space import SearchSpace

PROFILE_NAME = "profile.json"


def run(config: RunConfig) -> int:
    """Print the profile and write it to ``out``; returns 0.

    A file of measured damage alone is shown and not written: it is no profile.

    Raises:
        UserError: If the input or the environment can't work.
    """
    from qra_bo.pipeline.run import make_setting, task_folder

    console, path = Console(soft_wrap=True), config.sensitivity.path
    if path is not None:
        given = read_given(Path(path).expanduser())
        if isinstance(given, MeasuredDamage):
            print_damage(given, console)
            return 0
    setting = make_setting(config)
    folder = task_folder(config)
    profile = setting.profile if setting.profile is not None else _measured(config)
    save_profile(profile, folder / PROFILE_NAME)
    print_profile(profile, setting.space, console)
    console.print(f"Files: {folder / PROFILE_NAME} (use it with sensitivity.path)", markup=False, highlight=False)
    return 0


def _measured(config: RunConfig) -> SensitivityProfile:
    from qra_bo.pipeline.run import live_view, oracle_session

    with oracle_session(config) as executor:
        if config.display == "none":
            return executor.profile(lambda what, done, total: None).profile
        with live_view(config) as view:
            return executor.profile(view.progress).profile


def print_profile(profile: SensitivityProfile, space: SearchSpace, console: Console) -> None:
    """One line for every unit: damage by format (nats) and what the largest rank of the search may gain."""
    columns = ["unit", *(f"{f} damage" for f in profile.formats), "rank_sensitivity"]
    rank = space.ranks.values[-1]
    gain = None if profile.rank_sensitivity is None else profile.rank_sensitivity[:, min(rank, profile.rank_sensitivity.shape[1]) - 1]
    rows = [[unit, *(f"{d:+.5f}" for d in profile.quantization_sensitivity[i]), DASH if gain is None else f"{gain[i]:.4g}"]
            for i, unit in enumerate(profile.units)]
    rows.append(["sum", *(f"{d:+.5f}" for d in profile.quantization_sensitivity.sum(axis=0)),
                 DASH if gain is None else f"{gain.sum():.4g}"])
    if profile.quantization_se is not None:
        rows.append(["standard error, mean", *(f"{e:.5f}" for e in profile.quantization_se.mean(axis=0)), DASH])
    _print(console, f"Sensitivities: {profile.source}", columns, rows)
    console.print(f"Loss of the 16-bit model on the calibration text: {profile.base_loss:.4f} nats per token. Damage: "
                  "its rise when only that unit is quantised. Gain: squared singular values of the unit's weight "
                  f"gradient, the {rank} largest of every matrix summed.", highlight=False)


def print_damage(given: MeasuredDamage, console: Console) -> None:
    """The most damaged modules first, and what the file lacks."""
    order = np.argsort(-given.loss, kind="stable")
    _print(console, f"Measured damage: {given.source}", ["module", "quantization_sensitivity"],
           [[given.units[i], f"{given.loss[i]:+.5f}"] for i in order])
    console.print("This file holds no I_r (gain), no KL divergence, no loss of the 16-bit model and no names of "
                  "storage formats: a search can't use it, and no profile.json is written from it.", highlight=False)


def _print(console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if not console.is_terminal:
        console.print(title, markup=False, highlight=False)
        for row in (columns, *rows):
            console.file.write("\t".join(row) + "\n")  # the console would expand tabs
        return
    table = Table(title=escape(title), title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)
