"""Compared methods and their settings, and ablations of our method."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bench.published import shrunk_autoqra

OURS = "structured"
RULES = 3
"""Of the game (what is told and charged, profiles included): raised when they change, so that older searches are made
again."""
EQUIVALENTS, PROPOSALS = 40.0, 32.0
"""High-fidelity equivalents of a search, and about what the profile and the uniform baselines leave of them."""
OTHERS = ("peer", "published", "informed")
"""Kinds of entries that are not variants of our method."""
SENSITIVE = ["quantization_sensitivity", "quantization_sensitivity x rank", "rank_sensitivity"]
"""Parts of our surrogate that sensitivities give."""


@dataclass(frozen=True)
class Entry:
    """One row of the comparison.

    Args:
        name: Of the row.
        method: Name among the search methods.
        kind: ``"qra_bo"``, ``"peer"``, ``"informed"`` (a peer with our measure of sensitivity), ``"published"``,
            ``"ablation"``, ``"transfer"``, or ``"own"``: of one's own, which is told of ranks off the ladder too.
        options: Of the method; none means its defaults.
        note: What differs from a method's own defaults.
        recommended: Whether the incumbent is what the method recommends, if it does; else the least loss seen.
    """

    name: str
    method: str
    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    recommended: bool = True

    @property
    def settings_sha256(self) -> str:
        """Of method, options and rules: what was frozen can be checked."""
        text = json.dumps([RULES, self.method, self.options, self.recommended], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


BY_DIVERGENCE = "the knapsack minimises KL from the 16-bit model, not the rise of the loss"
DIVERGENCE, BELIEVED = {"quantization_sensitivity": "divergence"}, {"quantization_sensitivity": "believed"}
BY_BELIEF = "the knapsack minimises qra_bo's measure of quantisation sensitivity"
PUBLISHED = shrunk_autoqra(PROPOSALS, EQUIVALENTS, low=0.5)
"""The published numbers are for 40 allocations a generation; they are shrunk as in the comparison of fine-tuning."""

COMPARED = (
    Entry("qra_bo", OURS, "qra_bo"),
    Entry("random", "random", "peer"),
    Entry("uniform", "uniform", "peer"),
    Entry("blind mix", "blind_mix", "peer"),
    Entry("sequential bits", "sequential_bits", "peer"),
    Entry("sequential bits, then ranks", "sequential", "peer"),
    Entry("bits by divergence", "sequential_bits", "informed", DIVERGENCE, BY_DIVERGENCE),
    Entry("bits by divergence, then ranks", "sequential", "informed", DIVERGENCE, BY_DIVERGENCE),
    Entry("bits by believed sensitivity", "sequential_bits", "informed", BELIEVED, BY_BELIEF),
    Entry("bits by believed sensitivity, then ranks", "sequential", "informed", BELIEVED, BY_BELIEF),
    Entry("hill climbing", "hill_climb", "peer"),
    Entry("NSGA-II", "nsga2", "peer"),
    Entry("TPE", "tpe", "peer"),
    Entry("GPSampler", "gp_sampler", "peer"),
    Entry("TuRBO", "turbo", "peer"),
    Entry("SMAC3", "smac", "peer"),
    Entry("published", "autoqra", "published", PUBLISHED, "population and promotions scaled to the cost"),
)
OTHER_TABLE = "the other table"
"""Value of an option that names a file of learned priors: the one of the table that is not searched on."""
ABLATIONS = (
    Entry("qra_bo with one draw", OURS, "ablation", {"draws": 1}),
    Entry("qra_bo by the least loss seen", OURS, "ablation", recommended=False),
    Entry("qra_bo by the posterior mean", OURS, "ablation", {"temperatures": [0.0]}),
)
RETIRED = (
    Entry("qra_bo without the warp", OURS, "ablation", {"model": {"warps": [math.inf]}}),
    Entry("qra_bo without the residual", OURS, "ablation", {"model": {"residual": 0.0}}),
    Entry("qra_bo without prior designs", OURS, "ablation", {"n_prior": 0}),
    Entry("qra_bo without sensitivities", OURS, "ablation", {"without": SENSITIVE, "n_prior": 0}),
    Entry("qra_bo by the loss's rise", OURS, "ablation", {"quantization_sensitivity": "rise"}),
    Entry("qra_bo by divergence", OURS, "ablation", {"quantization_sensitivity": "divergence"}),
    Entry("qra_bo reduced", OURS, "ablation",
          {"n_prior": 0, "draws": 1, "model": {"warps": [math.inf], "residual": 0.0}},
          "no prior designs, no warp, no residual, one draw"),
)
"""Rows of ``bench/results/search.json`` that are kept; the method no longer has these options."""
TRANSFER = (
    Entry("qra_bo with learned rates", OURS, "transfer", {"rates": OTHER_TABLE},
          "method.rates learned from the other table"),
)
"""What knows of evaluations that the others do not: never a part of the comparison."""
EVERYTHING = {entry.name: entry for entry in (*COMPARED, *ABLATIONS, *RETIRED, *TRANSFER)}
