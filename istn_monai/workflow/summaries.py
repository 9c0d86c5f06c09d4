"""Metrics of many pairs in summary, and as a table for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from istn_monai.workflow.pair_metrics import statistics

#: columns of the table: metrics and their titles; landmarks only where there are any
TABLE_TITLES = {
    "dice_merged": "Dice merged", "dice_labels": "Dice labels", "asd_merged": "ASD mm", "hd95_merged": "HD95 mm",
    "tre": "TRE mm", "tre_median": "TRE median", "lncc": "LNCC", "inverse_consistency": "IC mm",
    "folding": "folding %", "sdlogj": "SDlogJ", "sdlogj_l2r": "SDlogJ L2R", "seconds": "s",
}  # fmt: skip


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """``{method: {metric: {mean, std, median, n}}}`` over pairs, ignoring nan."""
    summary: dict[str, dict[str, dict[str, float]]] = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        names = dict.fromkeys(name for row in own for name, value in row.items() if isinstance(value, float))
        summary[method] = {name: statistics([row.get(name, float("nan")) for row in own]) for name in names}
    return summary


def table(summary: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """The summary as text, mean +- standard deviation over pairs."""
    columns = [column for column in TABLE_TITLES if column in next(iter(summary.values()))]
    lines = [f"{'':10}" + "".join(f"{TABLE_TITLES[column]:>16}" for column in columns)]
    for method, metrics in summary.items():
        cells = []
        for column in columns:
            factor = 100.0 if column == "folding" else 1.0
            cells.append(f"{factor * metrics[column]['mean']:.3f}+-{factor * metrics[column]['std']:.3f}")
        lines.append(f"{method:10}" + "".join(f"{cell:>16}" for cell in cells))
    return "\n".join(lines)
