"""Two jobs side by side: their ledgers, component by component, with the difference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memfit.ledger import compare
from memfit.report.json import SCHEMA_VERSION, result
from memfit.report.page import Cell, Column, Page, Row, Style, clean, paragraph, table
from memfit.report.verdict import STYLES, headline
from memfit.report.words import gib, job_line, moment, signed_gib

if TYPE_CHECKING:
    from memfit.formula.estimate import Estimate


def compare_document(left: Estimate, right: Estimate, names: tuple[str, str], *, full: bool = False) -> dict[str, Any]:
    """Both results and the differences, right minus left."""
    return {
        "schema_version": SCHEMA_VERSION,
        "left": result(left, names[0], full=full),
        "right": result(right, names[1], full=full),
        "differences": [
            {
                "name": d.component,
                "left_bytes": d.left_bytes,
                "right_bytes": d.right_bytes,
                "delta_bytes": d.delta_bytes,
            }
            for d in compare(left.ledger, right.ledger)
        ],
    }


def compare_text(page: Page, left: Estimate, right: Estimate, names: tuple[str, str]) -> str:
    """Headlines, then the table; totals as well as differences."""
    lines: list[str] = []
    for letter, name, estimate in (("A", names[0], left), ("B", names[1], right)):
        text = headline(estimate)
        painted = paragraph(page, f"{letter} {text}", "    ")
        word = estimate.verdict
        painted[0] = painted[0].replace(word, page.paint(word, STYLES[word]), 1)
        lines += painted
        told = "" if name == estimate.job.model.name else f"{clean(name)}: "
        lines += paragraph(page, f"  {told}{job_line(estimate)}", "    ")
    rows: list[Row] = [
        [d.component.replace("_", " "), gib(d.left_bytes), gib(d.right_bytes), _delta(d.delta_bytes)]
        for d in compare(left.ledger, right.ledger)
    ]
    a, b = left.device_bytes, right.device_bytes
    rows.append([Cell("at the peak", "bold"), Cell(gib(a), "bold"), Cell(gib(b), "bold"), _delta(b - a)])
    one, other = left.ledger.free_bytes, right.ledger.free_bytes
    if one is not None and other is not None:
        rows.append(["free", gib(one), gib(other), signed_gib(other - one)])
    columns = [Column("GiB", flex=True), Column("A", "right"), Column("B", "right"), Column("B - A", "right")]
    lines += ["", *table(page, columns, rows), ""]
    for letter, estimate in (("A", left), ("B", right)):
        lines += paragraph(page, f"{letter} peaks at {moment(estimate)}")
    return "\n".join(lines) + "\n"


def total_text(left: Estimate, right: Estimate) -> str:
    """The difference of the totals alone."""
    delta = signed_gib(right.device_bytes - left.device_bytes)
    return f"{delta} GiB: {gib(left.device_bytes)} to {gib(right.device_bytes)} GiB\n"


def _delta(num_bytes: int) -> Cell:
    style: Style = "good" if num_bytes < 0 else "bad" if num_bytes > 0 else ""
    return Cell(signed_gib(num_bytes), style)
