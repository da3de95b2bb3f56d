"""A trace as a picture: memory by component over the events, phases, peak, capacity, the largest tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

from memfit.ledger import COMPONENTS
from memfit.report.html import COLORS
from memfit.report.page import clean
from memfit.report.trace import headline, what, where
from memfit.report.words import gib, job_line
from memfit.trace.result import rounded
from memfit.units import GIB, MIB

if TYPE_CHECKING:
    from memfit.trace import Trace
    from memfit.trace.answer import Answer

POINTS = 1000
"""Moments that are drawn: of the events between two of them, the fullest."""

_WIDTH, _LEFT, _RIGHT = 1000, 64, 24
_TOP, _HEIGHT = 104, 330
_STRIP = 20
_ROW = 17
_TENSORS = 10
_FARTHEST = 2.0  # a capacity beyond so many peaks would press the picture flat
_CHARACTER = 6.2  # pixels of a character of the small text, about


class Point(NamedTuple):
    """The fullest event (number ``at``) of a run of events, and the bytes of each component after it."""

    at: int
    total: int
    components: tuple[int, ...]


class Stretch(NamedTuple):
    """Events ``begin`` to ``end`` (exclusive) belong to one phase of one step."""

    phase: str
    step: int
    begin: int
    end: int


def timeline_svg(answer: Answer) -> str:
    """The picture as a text that stands alone."""
    trace = answer.trace
    names = tuple(name for name in COMPONENTS if any(b.component == name for b in trace.blocks.values()))
    points = sampled(trace, names)
    title = _title(answer)
    tensors = answer.tensors[:_TENSORS]
    height = _TOP + _HEIGHT + _STRIP + 52 + (_ROW * (len(tensors) + 1) + 20 if tensors else 0)
    plot = _Plot(answer, points, max(len(trace.events), 1))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}"'
        ' role="img" aria-labelledby="title desc" font-family="system-ui, -apple-system, \'Segoe UI\','
        ' \'DejaVu Sans\', sans-serif" font-size="12" fill="#222">',
        f'<title id="title">{_safe(title)}</title>',
        f'<desc id="desc">{_safe(_description(answer, names))}</desc>',
        f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>',
        *_head(answer, title),
        *_legend(names),
        *plot.grid(),
        *plot.areas(names),
        *plot.lines(),
        *plot.phases(stretches(trace)),
        *plot.peak(),
        *_table(tensors, _TOP + _HEIGHT + _STRIP + 52),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def sampled(trace: Trace, names: Sequence[str], most: int = POINTS) -> list[Point]:
    """At most ``most`` moments in order; the peak is one of them."""
    column = {name: k for k, name in enumerate(names)}
    sums = [0] * len(names)
    place = {uid: column[block.component] for uid, block in trace.blocks.items()}
    width = max(-(-len(trace.events) // most), 1)
    out: list[Point] = []
    total, best = 0, 0
    for index, event in enumerate(trace.events):
        size = rounded(event.bytes) if event.bytes > 0 else -rounded(-event.bytes)
        sums[place[event.id]] += size
        total += size
        if index % width == 0:
            best = total
            out.append(Point(index, total, tuple(sums)))
        elif total > best:
            best = total
            out[-1] = Point(index, total, tuple(sums))
    return out


def stretches(trace: Trace) -> list[Stretch]:
    """The phases in order; a phase that others interrupt comes several times."""
    out: list[Stretch] = []
    for index, event in enumerate(trace.events):
        if out and (out[-1].phase, out[-1].step) == (event.phase, event.step):
            out[-1] = out[-1]._replace(end=index + 1)
        else:
            out.append(Stretch(event.phase, event.step, index, index + 1))
    return out


class _Plot:
    """The area of the picture that has axes."""

    def __init__(self, answer: Answer, points: list[Point], num_events: int) -> None:
        self.answer = answer
        self.points = points
        self.num_events = num_events
        self.peak_bytes = max(answer.peak[1], 1)
        self.reserved = answer.reserved[1]
        room = None if answer.capacity_bytes is None else answer.capacity_bytes - answer.outside_bytes
        self.room = room if room is not None and 0 < room <= _FARTHEST * max(self.peak_bytes, self.reserved) else None
        self.unit, self.unit_name = (GIB, "GiB") if self.peak_bytes >= GIB else (MIB, "MiB")
        self.tick = _nice(max(self.peak_bytes, self.reserved, self.room or 0) / self.unit / 5)
        top = max(self.peak_bytes, self.reserved, self.room or 0) * 1.08
        self.top = max(top, self.tick * self.unit)

    def x(self, index: float) -> float:
        """Of an event."""
        return round(_LEFT + (_WIDTH - _LEFT - _RIGHT) * index / self.num_events, 1)

    def y(self, num_bytes: float) -> float:
        """Of a size."""
        return round(_TOP + _HEIGHT * (1 - num_bytes / self.top), 1)

    def grid(self) -> Iterator[str]:
        """Lines and numbers of the vertical axis."""
        value = 0.0
        while value * self.unit <= self.top:
            y = self.y(value * self.unit)
            yield f'<path d="M{_LEFT} {y}H{_WIDTH - _RIGHT}" stroke="{"#222" if value == 0 else "#e4e4e4"}"/>'
            yield f'<text x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">{value:g}</text>'
            value += self.tick
        yield f'<text x="{_LEFT - 8}" y="{_TOP - 8}" text-anchor="end" font-weight="600">{self.unit_name}</text>'

    def areas(self, names: Sequence[str]) -> Iterator[str]:
        """A filled outline for each component, on top of those before it."""
        xs = [self.x(p.at) for p in self.points]
        below = [0] * len(self.points)
        for column, name in enumerate(names):
            above = [b + p.components[column] for b, p in zip(below, self.points, strict=True)]
            if above != below:
                edge = _steps(xs, [self.y(v) for v in above], self.x(self.num_events))
                base = _steps(xs, [self.y(v) for v in below], self.x(self.num_events))
                outline = "M" + "L".join(f"{x} {y}" for x, y in (*edge, *reversed(base))) + "Z"
                color = COLORS[name]
                yield f'<path d="{outline}" fill="{color}"><title>{_plain(name)}</title></path>'
            below = above

    def lines(self) -> Iterator[str]:
        """What the allocator reserved at most, and what the card leaves to it."""
        marks = [(self.reserved, f"reserved at most: {self.size(self.reserved)}", "#555", "5 4")]
        if self.room is not None:
            marks.append((self.room, f"the card leaves {self.size(self.room)}", "#b00000", ""))
        heights: list[float] = []
        for size, text, color, dashes in marks:
            y = self.y(size)
            dash = f' stroke-dasharray="{dashes}"' if dashes else ""
            yield f'<path d="M{_LEFT} {y}H{_WIDTH - _RIGHT}" stroke="{color}" stroke-width="1.5"{dash}/>'
            label = y - 5
            if any(abs(label - other) < 14 for other in heights):
                label = y + 14 if size < self.reserved else y - 19
            heights.append(label)
            yield _outlined(_LEFT + 6, label, text, color=color)

    def phases(self, found: Sequence[Stretch]) -> Iterator[str]:
        """A strip below the axis with a field for each phase, and its border through the plot."""
        y = _TOP + _HEIGHT
        several = len({s.step for s in found if s.step >= 0}) > 1
        for k, stretch in enumerate(found):
            a, b = self.x(stretch.begin), self.x(stretch.end)
            name = f"{stretch.phase} {stretch.step + 1}" if several and stretch.step >= 0 else stretch.phase
            fill = "#ececec" if k % 2 else "#dadada"
            yield (
                f'<rect x="{a}" y="{y + 2}" width="{max(round(b - a, 1), 0.5)}" height="{_STRIP}" fill="{fill}">'
                f"<title>{_safe(name)}</title></rect>"
            )
            if b - a > 12 and stretch.begin:
                yield f'<path d="M{a} {_TOP}V{y}" stroke="#222" stroke-opacity=".35" stroke-dasharray="2 3"/>'
            shown = next((n for n in (name, stretch.phase) if b - a > 0.95 * _CHARACTER * len(n)), "")
            if shown:
                yield f'<text x="{round((a + b) / 2, 1)}" y="{y + 16}" text-anchor="middle">{_safe(shown)}</text>'
        text = f"{self.num_events} allocations and frees in order"
        yield f'<text x="{_WIDTH - _RIGHT}" y="{y + _STRIP + 17}" text-anchor="end" fill="#555">{text}</text>'

    def peak(self) -> Iterator[str]:
        """A mark and a line of text at the peak."""
        index, size = self.answer.peak
        if index < 0:
            return
        x, y = self.x(index), self.y(size)
        yield f'<circle cx="{x}" cy="{y}" r="4" fill="#fff" stroke="#222" stroke-width="1.8"/>'
        text = f"peak {self.size(size)}: {self.answer.ledger.moment.replace('aten::', '')}"
        right = x > (_LEFT + _WIDTH) / 2
        # inside of the areas below the mark, where the lines of the limits do not run
        yield _outlined(x - 10 if right else x + 10, y + 20, text, anchor="end" if right else "start", weight=600)

    def size(self, num_bytes: int) -> str:
        """A size in the unit of the axis."""
        return f"{gib(num_bytes)} GiB" if self.unit == GIB else f"{num_bytes / MIB:.1f} MiB"


def _steps(xs: Sequence[float], ys: Sequence[float], end: float) -> list[tuple[float, float]]:
    """The corners of a line that stays until the next point; points on a level are left out."""
    out: list[tuple[float, float]] = []
    for x, y in zip(xs, ys, strict=True):
        if out and out[-1][1] == y:
            continue
        if out:
            out.append((x, out[-1][1]))
        out.append((x, y))
    if out:
        out.append((end, out[-1][1]))
    return out


def _head(answer: Answer, title: str) -> Iterator[str]:
    yield f'<text x="{_LEFT - 44}" y="28" font-size="17" font-weight="600">{_safe(title)}</text>'
    if answer.estimate is not None:
        text = _cut(job_line(answer.estimate, ("model",)), 150)
        yield f'<text x="{_LEFT - 44}" y="48" fill="#555">{_safe(text)}</text>'


def _title(answer: Answer) -> str:
    name = ""
    if answer.estimate is not None:
        name = f"{clean(answer.estimate.job.model.name or 'the given configuration')}, {answer.label}; "
    return _cut(name + headline(answer).removesuffix(", traced"), 105)


def _description(answer: Answer, names: Sequence[str]) -> str:
    held = ", ".join(f"{_plain(n)} {gib(size)} GiB" for n, size in answer.trace.components(answer.peak[0]).items())
    return (
        f"Memory allocated on the GPU after each of {len(answer.trace.events)} allocations and frees, stacked by"
        f" component ({', '.join(map(_plain, names))}). Highest: {gib(answer.peak[1])} GiB at"
        f" {answer.ledger.moment}: {held}."
    )


def _legend(names: Sequence[str]) -> Iterator[str]:
    x = _LEFT - 44.0
    for name in names:
        text = _plain(name)
        yield f'<rect x="{x:.1f}" y="62" width="12" height="12" fill="{COLORS[name]}"/>'
        yield f'<text x="{x + 17:.1f}" y="72">{text}</text>'
        x += 17 + _CHARACTER * 1.15 * len(text) + 18


def _table(tensors: Sequence[Any], top: int) -> Iterator[str]:
    if not tensors:
        return
    columns = ((64, "end", 12), (104, "end", 8), (120, "start", 58), (540, "start", 38), (810, "start", 27))
    rows = [("GiB", "", "largest at the peak", "module", "line")]
    rows += [(gib(t.bytes), f"×{t.num_blocks}", what(t), *where(t)) for t in tensors]
    for k, row in enumerate(rows):
        y = top + k * _ROW
        style = ' fill="#555"' if k == 0 else ""
        for (x, anchor, most), text in zip(columns, row, strict=True):
            if text:
                yield f'<text x="{x}" y="{y}" text-anchor="{anchor}"{style}>{_safe(_cut(text, most))}</text>'


def _outlined(x: float, y: float, text: str, *, color: str = "#222", anchor: str = "start", weight: int = 400) -> str:
    """Text with a white rim, legible on any area. Written twice: not every viewer knows ``paint-order``."""
    place = f'x="{round(x, 1)}" y="{round(y, 1)}" text-anchor="{anchor}" font-weight="{weight}"'
    rim = f'<text {place} fill="none" stroke="#fff" stroke-width="3" aria-hidden="true">{_safe(text)}</text>'
    return f'{rim}<text {place} fill="{color}">{_safe(text)}</text>'


def _nice(size: float) -> float:
    """The smallest of 1, 2, 5, 10, 20 ... that is not below ``size``."""
    step = 1.0
    while True:
        for factor in (1, 2, 5):
            if step * factor >= size:
                return step * factor
        step *= 10


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _plain(name: str) -> str:
    return name.replace("_", " ")


def _safe(text: str) -> str:
    return escape(clean(text))
