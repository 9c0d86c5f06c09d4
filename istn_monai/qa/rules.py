"""The traffic light of a registered pair: rules, and what they make of its metrics.

A rule compares one metric with two limits; the pair's status is the worst of all rules. It is the only judge of a
registration: pages, reports and replies to hosts all have their reasons from here. The limits were read off pairs
of hippocampus crops, good ones and wrong inputs, see ``docs/qa.md``: good ones are on the green side, with a margin,
and behind the red limits only wrong inputs were seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

GREEN, AMBER, RED = STATUSES = ("green", "amber", "red")
UNKNOWN = "none"  # the status of a rule that does not apply
#: of Okabe and Ito, and a red that is darker than their vermilion: told apart without seeing red or green
STATUS_COLORS = {GREEN: "#009e73", AMBER: "#e69f00", RED: "#cc3311", UNKNOWN: "#c3c9d0"}


@dataclass(frozen=True)
class Rule:
    """One metric and its limits.

    Attributes:
        metric: its name, see :func:`istn_monai.qa.measures.measure`.
        title: the metric in words.
        amber: worse than this is amber.
        red: worse than this is red; None never is.
        high_is_bad: whether larger is worse; else smaller is.
        meaning: what is wrong then.
        absent: why a pair may not have this metric.
    """

    metric: str
    title: str
    amber: float
    red: float | None
    high_is_bad: bool
    meaning: str
    absent: str = "not measured"

    def status(self, value: float) -> str:
        """The status of a value, one of ``STATUSES``; what is no number is red."""
        sign = 1 if self.high_is_bad else -1
        if not value == value or (self.red is not None and sign * value > sign * self.red):
            return RED
        return AMBER if sign * value > sign * self.amber else GREEN

    def limits(self) -> str:
        """The limits in words, such as "amber above 0.3, red above 0.4"."""
        word = "above" if self.high_is_bad else "below"
        red = "" if self.red is None else f", red {word} {self.red:g}"
        return f"amber {word} {self.amber:g}{red}"


NO_ITN = "does not apply: without an ITN"
NO_REFINEMENT = "does not apply: nothing was refined"
#: in the order in which the page shows them
RULES = (
    # the strongest of all: the network's first guess fits only anatomy that it knows
    Rule("overlap_one_pass", "overlap of M′ and F′, one pass", 0.68, 0.55, False,
         "the network does not find the same structures in both images", NO_ITN),
    Rule("overlap", "overlap of M′ and F′, refined", 0.82, 0.65, False,
         "even refined, the structures do not coincide", "does not apply: not refined, or without an ITN"),
    # where an ITN sees what it was trained on, it says yes or no; of other anatomy it says perhaps
    Rule("ambiguity", "ambiguity in M′ and F′", 0.28, 0.36, True,
         "the network is unsure of the structures: another anatomy, contrast, orientation or field of view, "
         "or trained too briefly",
         "does not apply: the representations are no masks"),
    Rule("structure", "peak of M′ and F′", 0.8, 0.5, False,
         "a structure is missing from a representation", NO_ITN),
    Rule("volume_ratio", "ratio of volumes in M′ and F′", 2.0, 3.0, True,
         "the structures differ in size: one is truncated, or a voxel size is wrong", NO_ITN),
    Rule("coverage", "moving image covers the fixed", 0.95, 0.8, False,
         "the moving image does not reach over the fixed structures"),
    Rule("correlation", "correlation of the images", 0.4, 0.2, False,
         "the images do not look alike", "does not apply: an ITN looks past intensities"),
    Rule("objective", "objective, end / start", 0.8, 0.995, True, "the refinement improved little or nothing",
         "does not apply: no structures were refined"),
    # images never agree as structures do: 0.85 is a good pair of brains; a pair that was aligned before has little left
    Rule("objective_images", "objective of images, end / start", 0.98, None, True,
         "the refinement of the images improved next to nothing", "does not apply: not refined, or structures were"),
    Rule("lncc_change", "image correlation, end − start", 0.0, None, False,
         "the refinement fits the structures and spoils what lies around them", NO_REFINEMENT),
    # one of an affine's twelve is 0.08: amber
    Rule("at_bound", "parameters at their bound", 0.005, 0.1, True,
         "the transformation wants to go further than it can", NO_REFINEMENT),
    Rule("displacement", "displacement / grid's side", 0.3, 0.4, True,
         "points move far: is the initial alignment right?"),
    Rule("sdlogj", "SDlogJ", 0.5, 0.8, True, "volumes change unevenly"),
    Rule("folding", "folding", 0.0, 0.01, True, "the field folds: there it has no inverse"),
    Rule("inverse_consistency_structures", "mm off after both ways, in the structures", 3.0, None, True,
         "registering the other way round leads elsewhere", "does not apply: without both_ways, or without an ITN"),
)  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """What one rule says of one pair; ``value`` is None where it does not apply."""

    rule: Rule
    value: float | None

    @property
    def status(self) -> str:
        """One of ``STATUSES``, or ``UNKNOWN``."""
        return UNKNOWN if self.value is None else self.rule.status(self.value)

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.rule.title}: {self.rule.absent}"
        return f"{self.status}: {self.rule.meaning} ({self.rule.title} {self.value:.3f}; {self.rule.limits()})"


@dataclass(frozen=True)
class Verdict:
    """The status of a pair and what it is made of: the pair's metrics, and the finding of each rule."""

    metrics: Mapping[str, float]
    findings: tuple[Finding, ...]

    @property
    def status(self) -> str:
        """The worst of all findings; red if no rule applies."""
        return max((f.status for f in self.findings if f.value is not None), key=STATUSES.index, default=RED)

    @property
    def reasons(self) -> list[str]:
        """Why the status is not green, the worst first."""
        firing = [finding for finding in self.findings if finding.status in (AMBER, RED)]
        return [str(finding) for finding in sorted(firing, key=lambda finding: finding.status != RED)]

    def report(self) -> dict[str, Any]:
        """For ``report.json``: ``status``, ``reasons``, ``skipped`` (rules that do not apply) and ``metrics``."""
        skipped = [str(finding) for finding in self.findings if finding.value is None]
        return {"status": self.status, "reasons": self.reasons, "skipped": skipped, "metrics": dict(self.metrics)}


def traffic_light(metrics: Mapping[str, float]) -> Verdict:
    """Judges the metrics of a pair by ``RULES``; a rule whose metric is absent does not apply."""
    return Verdict(metrics, tuple(Finding(rule, metrics.get(rule.metric)) for rule in RULES))
