"""A completed job as a table: each value with its origin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from memfit.job import Completed, Job, Row, complete, load
from memfit.report.estimate import warnings
from memfit.report.page import Cell, Column, Page, Style, table
from memfit.report.words import value

_ORIGINS: dict[str, Style] = {"stated": "bold", "profile": "", "derived": "", "default": "dim"}


def job_text(page: Page, completed: Completed, rows: Sequence[Row]) -> str:
    """Values by section; with ``page.verbose`` also what each field means."""
    lines: list[str] = []
    for section in dict.fromkeys(row.path.partition(".")[0] for row in rows):
        inside = [row for row in rows if row.path.partition(".")[0] == section]
        if lines:
            lines.append("")
        lines.append(page.paint(f"[{section}]", "bold"))
        columns = [Column(""), Column("", flex=True), Column("")]
        columns += [Column("", flex=True)] if page.verbose else []
        lines += table(page, columns, [_row(page, row) for row in inside], indent="  ")
    notes = warnings(page, completed.warnings)
    return "\n".join([*lines, *(["", *notes] if notes else [])]) + "\n"


def _row(page: Page, row: Row) -> list[Cell | str]:
    name = row.path.partition(".")[2]
    shown = "{...}" if isinstance(row.value, dict) and len(row.value) > 3 else value(row.value)
    found: list[Cell | str] = [name, shown, Cell(row.origin, _ORIGINS.get(row.origin, ""))]
    return [*found, Cell(row.doc, "dim")] if page.verbose else found


def resolved_job(completed: Completed, rows: Sequence[Row]) -> Job:
    """The job with the values of ``rows`` stated: what has an effect, and nothing of the other task kind."""
    stated = {row.path: row.value for row in rows if row.origin == "stated" and not row.path.startswith("model.")}
    others = {row.path: row.value for row in rows if row.origin != "stated" and not row.path.startswith("model.")}
    known = set(completed.warnings)
    for path, item in list(others.items()):  # a default that has no effect would be warned about once it is stated
        if not known.issuperset(complete(load(None, {**stated, path: item})).warnings):
            del others[path]
    return replace(load(None, {**stated, **others}), model=completed.job.model)
