"""A sweep as a table, and the frontier up to which the job fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from memfit.errors import MemfitError
from memfit.report.estimate import short
from memfit.report.json import SCHEMA_VERSION, error_fields, result
from memfit.report.page import Cell, Column, Page, Row, Style, cells, clean, paragraph, table
from memfit.report.verdict import STYLES, need_of
from memfit.report.words import cards, gib, job_line, percent, value

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
        return "model" if self.field == "model.name" else short(self.field)


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

    def frontier(self) -> list[tuple[Any, list[Any]]]:
        """For each value of the first axis (None for a single axis) the values of the last axis at which it fits."""
        first = self.axes[0].values if len(self.axes) > 1 else (None,)
        return [(value, self._fitting(row)) for value, row in zip(first, self.rows, strict=True)]

    def _fitting(self, row: Sequence[Estimate | MemfitError]) -> list[Any]:
        pairs = zip(self.axes[-1].values, row, strict=True)
        return [item for item, cell in pairs if not isinstance(cell, MemfitError) and cell.fits]


def sweep_document(sweep: Sweep, *, full: bool = False) -> dict[str, Any]:
    """The sweep as data: axes, a result or an error for each cell, the frontier."""
    sweep_cells: list[dict[str, Any]] = []
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
            answer: dict[str, Any] = {
                "verdict": cell.verdict,
                "p_oom": cell.p_oom,
                "capacity_bytes": cell.capacity_bytes,
            }
            sweep_cells.append({"values": values, **answer, "peak_bytes": sizes, "peak_phase": cell.peak_phase})
    return {
        "schema_version": SCHEMA_VERSION,
        "axes": [{"field": axis.field, "values": list(axis.values)} for axis in sweep.axes],
        "cells": sweep_cells,
        "frontier": [
            {"values": {} if row is None else {names[0]: row}, "fits": fitting} for row, fitting in sweep.frontier()
        ],
    }


def sweep_text(page: Page, sweep: Sweep) -> str:
    """The table, the frontier in words, and why cells are empty."""
    estimates = sweep.estimates
    first = estimates[0]
    where = cards(first.resolved)
    names = [axis.name for axis in sweep.axes]
    lines = paragraph(page, f"{' and '.join(names)} varied; {job_line(first, names)}")
    if where and not {"gpu", "gpus", "memory_gib"} & set(names):
        lines += paragraph(page, f"  {where}, {gib(first.capacity_bytes or 0)} GiB each", "    ")
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
    rows: list[Row] = []
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
    most = max((page.width - first) // (width + 2), 1)
    blocks = -(-len(heads) // most)
    at_once = -(-len(heads) // blocks)  # blocks of equal width rather than a last one of a single column
    lines = []
    for start in range(0, len(heads), at_once):
        part = slice(start, start + at_once)
        columns = [Column(down.name), *(Column(h + " ", "right") for h in heads[part])]
        rows: list[Row] = [[name, *row[part]] for name, row in zip(names, body, strict=True)]
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
    for row, fitting in sweep.frontier():
        where = "" if row is None else f"{sweep.axes[0].name} {value(row)}: "
        lines += paragraph(page, where + _fits_where(axis, fitting))
    return lines


def _fits_where(axis: Axis, fitting: Sequence[Any]) -> str:
    """In words: throughout, up to a value, from a value on, or at which."""
    known = list(axis.values)
    if not fitting:
        return f"does not fit at any {axis.name}"
    if len(fitting) == len(known):
        return f"fits at every {axis.name}" if len(known) > 1 else f"fits at {axis.name} {value(known[0])}"
    ordered = all(isinstance(item, int) for item in known) and known == sorted(known)
    if ordered and list(fitting) == known[: len(fitting)]:
        return f"fits up to {axis.name} {value(fitting[-1])}"
    if ordered and list(fitting) == known[-len(fitting) :]:
        return f"fits from {axis.name} {value(fitting[0])} on"
    return f"fits at {axis.name} {', '.join(value(item) for item in fitting)}"
