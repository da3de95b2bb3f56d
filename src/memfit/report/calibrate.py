"""Refined figures of the time model as text."""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING

from memfit.report.page import Cell, Column, Page, Row, clean, paragraph, table
from memfit.speed.calibration import constant

if TYPE_CHECKING:
    from memfit.speed.fit import Fit

_RUNS = 10


def calibrate_text(page: Page, found: Fit, path: str) -> str:
    """The error before and after, what changed, and the runs; all of them on a verbose page."""
    before, after = fmean(map(abs, found.before)), fmean(map(abs, found.after))
    number = len(found.runs)
    noun = "run" if number == 1 else "runs"
    lines = paragraph(
        page, f"step time of {number} {noun}: {before:.1%} off before, {after:.1%} after; in {clean(path)}"
    )
    changed = found.changed()
    if changed:
        rows: list[Row] = [
            [name, Cell(f"{old:.3g}"), Cell(f"{new:.3g}"), str(constant(name)["doc"])]
            for name, (old, new) in changed.items()
        ]
        columns = [Column("figure"), Column("shipped", "right"), Column("refined", "right"), Column("", flex=True)]
        lines += ["", *table(page, columns, rows)]
    shown = number if page.verbose else min(number, _RUNS)
    pairs = list(zip(found.runs, found.before, found.after, strict=True))[:shown]
    listed: list[Row] = [[clean(run.name), Cell(f"{b:+.1%}"), Cell(f"{a:+.1%}")] for run, b, a in pairs]
    columns = [Column("run", flex=True), Column("before", "right"), Column("after", "right")]
    lines += ["", *table(page, columns, listed)]
    if shown < number:
        lines += paragraph(page, f"  {number - shown} more (all: -v)")
    if found.skipped:
        name, why = found.skipped[0]
        lines += paragraph(page, f"  {len(found.skipped)} records not used, e.g. {clean(name)}: {clean(why)}")
    return "\n".join(lines) + "\n"
