"""Catalogue of a report's figures: title, caption, alternative text and the function that draws each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from matplotlib.figure import Figure

from qra_bo.report import alt, plots_runs, plots_search, plots_units, story
from qra_bo.report.data import ReportData
from qra_bo.report.side_by_side import NamedRun
from qra_bo.report.style import LIGHT, Theme, png_bytes

T = TypeVar("T")
Runs = Sequence[NamedRun]


@dataclass(frozen=True, slots=True)
class Plot(Generic[T]):
    """One figure of a run (``T`` is ``ReportData``) or of several (``T`` is a sequence of ``NamedRun``).

    Args:
        name: Stem of its file.
        title: Heading in the report.
        caption: How to read it.
        absent: Why it may be missing.
        shown: Its alternative text, with its numbers.
        draw: Draws it, or returns ``None`` where the journal lacks the data.
    """

    name: str
    title: str
    caption: str
    absent: str
    shown: Callable[[T], str]
    draw: Callable[[T, Theme], Figure | None]


def _each(shown: Callable[[ReportData], str]) -> Callable[[Runs], str]:
    """The alternative text of several runs, each under its name."""
    return lambda runs: " ".join(f"{run.name}: {shown(run.data)}" for run in runs)


PLOTS: tuple[Plot[ReportData], ...] = (
    Plot("confirmation", "Confirmation on unseen seeds",
         "Each dot is one training seed that the search never used: test loss of the best mixed allocation minus that "
         "of the best uniform baseline. The diamond is their mean with its 95 % interval.",
         "the winner was not compared on unseen seeds (yet)", alt.confirmation, plots_search.confirmation),
    Plot("pareto", "Loss against memory",
         "Every allocation trained at full length. Squares are uniform baselines, diamonds references that need not "
         "fit, the star is the winner. The step line joins the allocations that no other beats in both memory and "
         "loss. Triangles at the upper edge lie above the view.", "nothing was trained at full length yet",
         alt.pareto, plots_search.pareto),
    Plot("allocation", "Bits and ranks by unit",
         "Bit-width and LoRA rank that the winner gives to every unit, from the first layer to the last.",
         "there is no winner yet", alt.allocation, plots_units.allocation),
    Plot("sensitivity", "Sensitivity by unit",
         "Rise of the loss when only one unit is quantised, for every format, and the first-order gain of adapter "
         "capacity in that unit. The upper axis is logarithmic away from 0.",
         "the sensitivities are not measured yet", alt.sensitivity, plots_units.sensitivity),
    Plot("memory", "Memory by part",
         "Predicted bytes of the winner, part by part, their sum, the measured bytes, and the budget.",
         "the run has not ended", alt.memory, plots_units.memory),
    Plot("convergence", "Convergence by cost",
         "Best validation loss so far against the cost spent; the dashed line is the best uniform baseline that fits. "
         "Triangles at the upper edge lie above the view.", "nothing was trained at full length yet",
         alt.convergence, plots_search.convergence),
    Plot("fidelities", "Shorter against longer training",
         "Loss early in training against the loss at the search's length, and that against a longer training of the "
         "best allocations. Where the order is not kept, the shorter training says little about the longer.",
         "under three allocations have a loss at both lengths", alt.fidelities, plots_search.fidelities),
    Plot("surrogate", "Calibration of the surrogate",
         "Leave-one-out prediction of the surrogate for each trial, with 95 % intervals, against the measured loss; "
         "dots on the dashed line are predicted exactly.",
         "the search has not ended, or its method has no surrogate", alt.surrogate, plots_search.surrogate),
)

RUNS_PLOTS: tuple[Plot[Runs], ...] = (
    Plot("differences", "Against the best uniform baseline",
         "Each run's difference to the best uniform baseline within its own budget. Diamonds carry the 95 % interval "
         "over unseen training seeds; circles are one seed's validation loss, not confirmed.",
         "no run has a uniform baseline to compare with yet", _each(story.versus), plots_runs.differences),
    Plot("fronts", "Loss against memory",
         "The allocations that no other of the same run beats in both memory and loss; dotted lines are the budgets.",
         "the runs' losses are not comparable, or there are none yet", _each(alt.pareto), plots_runs.memory_loss),
    Plot("costs", "Convergence by cost",
         "Best validation loss so far against the cost spent; the last step ends at the cost of the whole run.",
         "the runs' losses are not comparable, or there are none yet", _each(alt.convergence), plots_runs.convergence),
    Plot("allocations", "Bits and ranks by unit",
         "Bit-width and LoRA rank that every run's winner gives to every unit, from the first layer to the last.",
         "the runs have different units, or no winner yet", _each(alt.allocation), plots_runs.allocations),
)


def write_plots(d: ReportData, folder: Path) -> list[Path]:
    """Draw every figure that the run has data for into ``folder`` as PNG; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {folder / f"{plot.name}.png": plot.draw(d, LIGHT) for plot in PLOTS}
    for path, fig in drawn.items():
        if fig is not None:
            path.write_bytes(png_bytes(fig))
    return [path for path, fig in drawn.items() if fig is not None]
