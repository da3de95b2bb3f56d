"""The moments of a step as a chart: what stands on the fullest rank at each, by component."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memfit.formula.step import ENTRIES
from memfit.ledger import COMPONENTS
from memfit.report.page import Page, Style, cells, clean, paragraph, wrap
from memfit.report.words import MARKS, gib

if TYPE_CHECKING:
    from memfit.formula.estimate import Estimate

_BAR_LEAST = 16


def moments(estimate: Estimate) -> list[dict[str, Any]]:
    """The moments in order, JSON-ready: phase, what, bytes allocated, bytes by component."""
    found = []
    for phase, what, parts in estimate.phases:
        sums: dict[str, int] = {}
        for name, size in parts.items():
            if size:
                component = ENTRIES[name][0] if name in ENTRIES else "unaccounted"
                sums[component] = sums.get(component, 0) + int(size)
        ordered = {name: sums[name] for name in COMPONENTS if name in sums}
        found.append({"phase": phase, "what": what, "bytes": sum(ordered.values()), "components": ordered})
    return found


def timeline_text(page: Page, estimate: Estimate) -> str:
    """The chart, each moment a bar of component letters from empty to the capacity."""
    rows = moments(estimate)
    if not rows:
        return "this kind of job has no step to show\n"
    outside = {k: v for k, v in estimate.ledger.by_component().items() if k in ("runtime", "others")}
    base = sum(outside.values())
    top = max(row["bytes"] for row in rows)
    scale = max(top + base, estimate.capacity_bytes or 0, 1)
    number = max(len(gib(row["bytes"])) for row in rows)
    names = [f"{clean(row['phase'])}: {clean(row['what'])}" for row in rows]
    names = [clean(r["what"]) if r["what"].startswith(r["phase"]) else n for n, r in zip(names, rows, strict=True)]
    label = min(max(map(cells, names)), max(page.width - number - 4 - _BAR_LEAST, 12))
    room = page.width - label - number - 6
    lines = []
    for name, row in zip(names, rows, strict=True):
        bar = _bar(page, {**outside, **row["components"]}, room, scale, estimate.capacity_bytes)
        peak = row["bytes"] == top
        for k, text in enumerate(wrap(name, label, "  ")):
            size = "" if k else gib(row["bytes"])
            padded = page.paint(text, "bold" if peak else "") + " " * (label - cells(text))
            mark = "*" if peak and not k else " "
            lines.append(f"{padded}  {size:>{number}} {mark} {'' if k else bar}".rstrip())
    used = {name for row in rows for name in row["components"]} | outside.keys()
    letters = ", ".join(f"{MARKS[name]} {name.replace('_', ' ')}" for name in COMPONENTS if name in used)
    end = "" if estimate.capacity_bytes is None else f"; {page.limit} is the capacity"
    lines += paragraph(page, f"GiB allocated on {clean(estimate.ledger.label)}, * the peak; {letters}{end}")
    return "\n".join(lines) + "\n"


def _bar(page: Page, sizes: dict[str, int], room: int, scale: int, capacity: int | None) -> str:
    runs: list[tuple[str, Style]] = []
    at = 0
    # What the process holds outside the allocator stands at the bottom: it is there first and stays.
    order = ("runtime", "others", *(n for n in COMPONENTS if n not in ("runtime", "others")))
    for name in order:
        start, at = at, at + sizes.get(name, 0)
        width = round(at / scale * room) - round(start / scale * room)
        letter = MARKS[name]
        runs.append((letter * width, letter))  # type: ignore[arg-type]
    filled = sum(len(text) for text, _ in runs)
    bar = "".join(page.paint(text, style) for text, style in runs)
    if capacity is not None:
        bar += " " * max(round(capacity / scale * room) - filled, 0) + (page.limit if at <= capacity else "")
    return bar
