"""All figures of a report: what each shows, in words for those who can't see it, and the function that draws it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from qra_bo.report import alt, plots_runs, plots_search, plots_units
from qra_bo.report.data import ReportData
from qra_bo.report.side_by_side import NamedRun, versus
from qra_bo.report.style import LIGHT, Theme, png_bytes


@dataclass(frozen=True, slots=True)
class Plot:
    """One figure.

    Args:
        name: Stem of its file.
        title: Heading in the report.
        caption: How to read it.
        absent: Why there may be none.
        shown: What it shows in numbers, its alternative text.
        draw: Draws it, or returns ``None`` where the journal lacks what it needs.
    """

    name: str
    title: str
    caption: str
    absent: str
    shown: Callable[[ReportData], str]
    draw: Callable[[ReportData, Theme], Figure | None]


@dataclass(frozen=True, slots=True)
class RunsPlot:
    """One figure over several runs; the fields are those of ``Plot``."""

    name: str
    title: str
    caption: str
    absent: str
    shown: Callable[[Sequence[NamedRun]], str]
    draw: Callable[[Sequence[NamedRun], Theme], Figure | None]


PLOTS = (
    Plot("confirmation", "Confirmation on unseen seeds",
         "Each dot is one training seed that the search never used: test loss of the best mixed allocation minus that "
         "of the best uniform choice. The diamond is their mean with its 95 % interval.",
         "the winner was not compared on unseen seeds (yet)", alt.confirmation, plots_search.confirmation),
    Plot("pareto", "Loss against memory",
         "Every allocation trained at full length. Squares are uniform choices, diamonds references that need not fit, "
         "the star is the winner; the step line joins what nothing else beats in both memory and loss. Triangles at "
         "the upper edge lie above the view.", "nothing was trained at full length yet",
         alt.pareto, plots_search.pareto),
    Plot("allocation", "Bits and ranks by unit",
         "Bit-width and LoRA rank that the winner gives to every unit, from the first layer to the last.",
         "there is no winner yet", alt.allocation, plots_units.allocation),
    Plot("sensitivity", "Sensitivity by unit",
         "How much the loss rises when only one unit is quantised, for every format, and how much adapter capacity "
         "may gain there to first order. The upper axis is logarithmic away from 0.",
         "the sensitivities are not measured yet", alt.sensitivity, plots_units.sensitivity),
    Plot("memory", "Where the memory goes",
         "Predicted bytes of the winner, part by part, their sum, what was measured, and the budget.",
         "the run has not ended", alt.memory, plots_units.memory),
    Plot("convergence", "Convergence by cost",
         "Best validation loss so far against the cost spent, the dashed line is the best uniform choice that fits. "
         "Triangles at the upper edge lie above the view.", "nothing was trained at full length yet",
         alt.convergence, plots_search.convergence),
    Plot("fidelities", "Shorter against longer training",
         "Loss early in training against the one at the search's length, and that against a longer training of the "
         "best allocations. If the order is not kept, the shorter training says little about the longer.",
         "under three allocations have a loss at both lengths", alt.fidelities, plots_search.fidelities),
    Plot("surrogate", "Calibration of the surrogate",
         "What the surrogate predicts for each evaluation when it is left out, with 95 % intervals, against what was "
         "measured; dots on the dashed line are predicted exactly.",
         "the search has not ended, or its method has no surrogate",
         alt.surrogate, plots_search.surrogate),
)

RUNS_PLOTS = (
    RunsPlot("differences", "Against the best uniform choice",
             "Each run's difference to the best uniform choice within its own budget. Diamonds carry the 95 % interval "
             "over unseen training seeds; circles are one seed's validation loss, not confirmed.",
             "no run has a uniform choice to compare with yet", alt.of_runs(versus), plots_runs.differences),
    RunsPlot("fronts", "Loss against memory",
             "What nothing else of the same run beats in both memory and loss; dotted lines are the budgets.",
             "the runs' losses are not comparable, or there are none yet",
             alt.of_runs(alt.pareto), plots_runs.memory_loss),
    RunsPlot("costs", "Convergence by cost",
             "Best validation loss so far against the cost spent; the last step ends at the cost of the whole run.",
             "the runs' losses are not comparable, or there are none yet",
             alt.of_runs(alt.convergence), plots_runs.convergence),
    RunsPlot("allocations", "Bits and ranks by unit",
             "Bit-width and LoRA rank that every run's winner gives to every unit, from the first layer to the last.",
             "the runs have different units, or no winner yet", alt.of_runs(alt.allocation), plots_runs.allocations),
)


def write_plots(d: ReportData, folder: Path) -> list[Path]:
    """Draw every figure that the run has data for into ``folder`` as PNG; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for plot in PLOTS:
        fig = plot.draw(d, LIGHT)
        if fig is not None:
            path = folder / f"{plot.name}.png"
            path.write_bytes(png_bytes(fig))
            paths.append(path)
    return paths
