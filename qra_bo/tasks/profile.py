"""``task=profile``: the sensitivities of every unit, as a table and ``profile.json``."""

import tempfile
from contextlib import closing
from pathlib import Path

from rich.console import Console

from qra_bo.config import RunConfig
from qra_bo.oracle.protocol import quiet
from qra_bo.pipeline.executors import make_executor
from qra_bo.pipeline.folders import new_folder
from qra_bo.pipeline.prepare import make_setting
from qra_bo.pipeline.text import RunText
from qra_bo.report.live import LiveView
from qra_bo.report.tables import print_table, progress_console
from qra_bo.sensitivity.profile import SensitivityProfile, save_profile
from qra_bo.space import SearchSpace
from qra_bo.utils.errors import OutputError
from qra_bo.utils.files import read_object, writing
from qra_bo.utils.formatting import DASH

PROFILE_NAME = "profile.json"


def run(config: RunConfig) -> int:
    """Print the profile and write it to ``out``; returns 0.

    Raises:
        UserError: If the input or the environment can't work, or another file of its name would be lost.
    """
    text = RunText(config)
    setting = make_setting(config, text=text)
    folder = new_folder(config, config.task) if config.out is None else Path(config.out)
    path = folder / PROFILE_NAME
    with writing(path, "measure again"):
        folder.mkdir(parents=True, exist_ok=True)
    if path.exists() and "quantization_kl" not in read_object(path):
        raise OutputError(f"{path} is no profile, and would be written over; give another out=")
    text.show()
    view = None if config.display == "none" else LiveView(progress_console(config.display == "plain"))
    with tempfile.TemporaryDirectory(prefix="qra_bo-") as scratch, \
            closing(make_executor(setting.config, Path(scratch))) as executor:
        profile = executor.profile(quiet if view is None else view.progress).profile
    save_profile(profile, path)
    console = Console(soft_wrap=True)
    print_profile(profile, setting.space, console)
    console.print(f"Files: {path}", markup=False, highlight=False)
    return 0


def print_profile(profile: SensitivityProfile, space: SearchSpace, console: Console) -> None:
    """Print a line for every unit: quantisation sensitivity by format (nats), rank sensitivity at the largest rank."""
    rank, found, loss = space.ranks[-1], profile.rank_sensitivity, profile.quantization_sensitivity
    gain = None if found is None else found[:, min(rank, found.shape[1]) - 1]
    gains = [DASH] * (len(loss) + 1) if gain is None else [f"{g:.4g}" for g in (*gain, gain.sum())]
    rows = [[unit, *(f"{d:+.5f}" for d in row), g]
            for unit, row, g in zip((*profile.units, "sum"), (*loss, loss.sum(axis=0)), gains, strict=True)]
    if profile.quantization_se is not None:
        rows.append(["standard error, mean", *(f"{e:.5f}" for e in profile.quantization_se.mean(axis=0)), DASH])
    console.print(f"Sensitivities: {profile.source}", markup=False, highlight=False)
    print_table(console, ["unit", *profile.formats, "rank sensitivity"], rows)
    console.print(f"Loss of the 16-bit model on the calibration text: {profile.base_loss:.4f} nats per token. "
                  "Quantisation sensitivity, by format: the rise of that loss when only that unit is quantised. Rank "
                  f"sensitivity: squared singular values of the unit's weight gradient, the {rank} largest of every "
                  "matrix summed.", highlight=False)
