"""A sweep as a table, and the frontier up to which the job fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from memfit.errors import MemfitError
from memfit.report.estimate import short
from memfit.report.json import SCHEMA_VERSION, error_fields, result
from memfit.report.page import Cell, Column, Page, Style, cells, clean, paragraph, table
from memfit.report.verdict import STYLES, need_of
from memfit.report.words import card, gib, job_line, percent, value

if TYPE_CHECKING:
    from memfit.formula.estimate import Estimate

_BAR_LEAST = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """One field that is varied: its dotted path and its values as typed."""

    field: str
    values: tuple[Any, ...]

    @property
    def name(self) -> str:
        """The flat field name."""
        return short(self.field)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """The answers over one or two axes, row by row (the second axis runs fastest).

    Attributes:
        axes: one or two.
        cells: an estimate, or why there is none.
    """

    axes: tuple[Axis, ...]
    cells: tuple[Estimate | MemfitError, ...]

    @property
    def estimates(self) -> list[Estimate]:
        """The cells that have an answer."""
        return [c for c in self.cells if not isinstance(c, MemfitError)]

    @property
    def rows(self) -> list[Sequence[Estimate | MemfitError]]:
        """The cells by value of the first axis; a single row for one axis."""
        size = len(self.axes[-1].values)
        return [self.cells[i : i + size] for i in range(0, len(self.cells), size)]

    def frontier(self) -> list[tuple[Any, Any]]:
        """For each row (value of the first axis, None for one axis) the last value before one does not fit, or None.

        Cells without an answer are passed over.
        """
        first = self.axes[0].values if len(self.axes) > 1 else (None,)
        return [(value, self._last(row)) for value, row in zip(first, self.rows, strict=True)]

    def _last(self, row: Sequence[Estimate | MemfitError]) -> Any:
        last = None
        for item, cell in zip(self.axes[-1].values, row, strict=True):
            if isinstance(cell, MemfitError):
                continue
            if not cell.fits:
                break
            last = item
        return last


def sweep_document(sweep: Sweep, *, full: bool = False) -> dict[str, Any]:
    """The sweep as data: axes, a result or an error for each cell, the frontier."""
    sweep_cells = []
    names = [axis.name for axis in sweep.axes]
    pairs = [(a,) for a in sweep.axes[0].values]
    if len(sweep.axes) > 1:
        pairs = [(a, b) for a in sweep.axes[0].values for b in sweep.axes[1].values]  # type: ignore[misc]
    for pair, cell in zip(pairs, sweep.cells, strict=True):
        values = dict(zip(names, pair, strict=True))
        if isinstance(cell, MemfitError):
            sweep_cells.append({"values": values, "error": error_fields(cell)})
        elif full:
            sweep_cells.append({"values": values, "result": result(cell)})
        else:
            sizes = {"allocated": cell.allocated_bytes, "reserved": cell.reserved_bytes, "device": cell.device_bytes}
            answer = {"verdict": cell.verdict, "p_oom": cell.p_oom, "capacity_bytes": cell.capacity_bytes}
            sweep_cells.append({"values": values, **answer, "peak_bytes": sizes, "peak_phase": cell.peak_phase})
    return {
        "schema_version": SCHEMA_VERSION,
        "axes": [{"field": axis.field, "values": list(axis.values)} for axis in sweep.axes],
        "cells": sweep_cells,
        "frontier": [
            {**({} if row is None else {names[0]: row}), names[-1]: last} for row, last in sweep.frontier()
        ],
    }


def sweep_text(page: Page, sweep: Sweep) -> str:
    """The table, the frontier in words, and why cells are empty."""
    estimates = sweep.estimates
    first = estimates[0]
    cards = card(first.resolved.gpu, first.resolved.values["gpus"])
    lines = paragraph(page, f"{', '.join(axis.name for axis in sweep.axes)} varied: {job_line(first)}")
    if cards and len({e.capacity_bytes for e in estimates}) == 1 and "gpu" not in {a.name for a in sweep.axes}:
        lines += paragraph(page, f"  {cards}, {gib(first.capacity_bytes or 0)} GiB each", "    ")
    lines.append("")
    lines += _grid(page, sweep) if len(sweep.axes) > 1 else _list(page, sweep)
    lines.append("")
    lines += _frontier(page, sweep)
    faults = dict.fromkeys(c.message for c in sweep.cells if isinstance(c, MemfitError))
    for text in list(faults)[:3]:
        lines += paragraph(page, f"no answer: {clean(text)}")
    return "\n".join(lines) + "\n"


def frontier_text(page: Page, sweep: Sweep) -> str:
    """Where it stops fitting, alone."""
    return "\n".join(_frontier(page, sweep)) + "\n"


def _list(page: Page, sweep: Sweep) -> list[str]:
    axis = sweep.axes[0]
    scale = max([max(need_of(e).high, e.capacity_bytes or 0) for e in sweep.estimates], default=1)
    rows: list[list[Cell | str]] = []
    for item, cell in zip(axis.values, sweep.cells, strict=True):
        if isinstance(cell, MemfitError):
            rows.append([value(item), "-", "-", "no answer", ""])
            continue
        p = "" if cell.p_oom is None else percent(cell.p_oom)
        need = gib(need_of(cell).mid)
        rows.append([value(item), need, p, Cell(cell.verdict, STYLES[cell.verdict]), ""])
    columns = [
        Column(axis.name),
        Column("needs GiB", "right"),
        Column("P(OOM)", "right"),
        Column("verdict"),
        Column(""),
    ]
    plain = Page(width=page.width, color=False)
    used = max(cells(line) for line in table(plain, columns, rows))
    room = page.width - used - 3
    lines = table(page, columns, rows)
    if room < _BAR_LEAST:
        return lines
    widths = [cells(line) for line in table(plain, columns, rows)]
    for k, cell in enumerate(sweep.cells, start=1):
        if isinstance(cell, MemfitError):
            continue
        size = round(need_of(cell).mid / scale * room)
        mark = None if cell.capacity_bytes is None else round(cell.capacity_bytes / scale * room)
        row = [page.full] * size + [" "] * (room + 1 - size)
        if mark is not None and row[mark] == " ":
            row[mark] = page.limit
        text = "".join(row).rstrip()
        bar = text.rstrip(page.limit).rstrip()
        lines[k] += " " * (used + 2 - widths[k]) + page.paint(bar, STYLES[cell.verdict]) + text[len(bar) :]
    return lines


_SIGNS = {"fits": " ", "tight": "~", "does not fit": "!", "unknown": " "}


def _grid(page: Page, sweep: Sweep) -> list[str]:
    down, across = sweep.axes
    heads = [value(item) for item in across.values]
    body = [[_cell(cell) for cell in row] for row in sweep.rows]
    names = [value(item) for item in down.values]
    first = max(map(cells, [down.name, *names]))
    width = max([cells(h) for h in heads] + [cells(c.text) for row in body for c in row])
    at_once = max((page.width - first) // (width + 2), 1)
    lines = []
    for start in range(0, len(heads), at_once):
        part = slice(start, start + at_once)
        columns = [Column(down.name), *(Column(h + " ", "right") for h in heads[part])]
        rows = [[name, *row[part]] for name, row in zip(names, body, strict=True)]
        if start:
            lines.append("")
        lines.append(page.paint(f"{' ' * first}  {across.name}", "dim"))
        lines += table(page, columns, rows)
    marks = "GiB needed; ~ tight, ! does not fit" if any(e.capacity_bytes for e in sweep.estimates) else "GiB needed"
    return [*lines, marks]


def _cell(cell: Estimate | MemfitError) -> Cell:
    if isinstance(cell, MemfitError):
        return Cell("- ")
    style: Style = STYLES[cell.verdict] if cell.verdict != "unknown" else ""
    return Cell(gib(need_of(cell).mid) + _SIGNS[cell.verdict], style)


def _frontier(page: Page, sweep: Sweep) -> list[str]:
    axis = sweep.axes[-1]
    if all(e.capacity_bytes is None for e in sweep.estimates):
        return paragraph(page, "no card is named, so nothing is said about fitting: add for example --gpu 8xh100")
    lines = []
    for row, last in sweep.frontier():
        where = "" if row is None else f"{sweep.axes[0].name} {value(row)}: "
        if last is None:
            text = f"{where}does not fit at {axis.name} {value(axis.values[0])}"
        elif last == axis.values[-1]:
            text = f"{where}fits throughout, up to {axis.name} {value(last)}"
        else:
            text = f"{where}fits up to {axis.name} {value(last)}"
        lines += paragraph(page, text)
    return lines
