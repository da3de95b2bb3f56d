"""The ledger as a table: each component starts where the one before it ends, up to the line of the capacity."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from memfit.ledger import Entry, Ledger
from memfit.report.page import Page, Style, cells, clean, wrap
from memfit.report.words import LETTERS, MARKS, gib, legend

_BAR_LEAST = 12
_LABEL_MOST = 40


class _Line(NamedTuple):
    """One line: what it is called, its size, where the number comes from, and where its bar stands."""

    label: str
    size: str
    letter: str = ""
    start: int = 0
    stop: int = 0
    style: Style = ""
    text_style: Style = ""
    fill: str = ""


def ledger(page: Page, book: Ledger, *, need: int | None = None) -> list[str]:
    """The table of one rank with its total, what is left, and the meaning of the letters.

    Args:
        page: where it stands.
        book: of the rank.
        need: bytes of it that must be there; the rest is cache that the allocator gives back. None: all.
    """
    lines = list(_components(page, book))
    total, capacity = book.device_bytes, book.capacity_bytes
    lines.append(_Line("at the peak", gib(total), text_style="bold"))
    if capacity is not None:
        name = remainder(book, need)
        if name == "free":
            lines.append(_Line(name, gib(capacity - total), "", total, capacity, fill=page.free))
        else:
            style: Style = "bad" if name == "missing" else "warn"
            lines.append(_Line(name, gib(total - capacity), "", capacity, total, style, style))
        lines.append(_Line("capacity", gib(capacity)))
    drawn = _draw(page, lines, total, capacity)
    letters = {line.letter for line in lines if line.letter}
    return [*drawn, *wrap(f"GiB on each GPU; {legend(letters)}", page.width, "  ")]


def remainder(book: Ledger, need: int | None) -> Literal["free", "to give back", "missing"]:
    """What the difference between the peak and a known capacity is; see `ledger` for ``need``."""
    assert book.capacity_bytes is not None
    if book.device_bytes <= book.capacity_bytes:
        return "free"
    return "to give back" if need is not None and need <= book.capacity_bytes else "missing"


def _components(page: Page, book: Ledger) -> Iterable[_Line]:
    at = 0
    for component, size in book.by_component().items():
        entries = [e for e in book.entries if e.component == component]
        style: Style = MARKS[component]  # type: ignore[assignment]
        start, at = at, at + size
        single = entries[0] if len(entries) == 1 else None
        label = _label(single) if single is not None else component.replace("_", " ")
        letter = LETTERS[single.provenance] if single is not None else ""
        yield _Line(label, gib(size), letter, min(start, at), max(start, at), style)
        if single is None:
            for entry in entries:
                yield _Line(f"  {clean(entry.name)}", gib(entry.bytes), LETTERS[entry.provenance])
                if page.verbose and entry.note:
                    yield _Line(f"    {clean(entry.note)}", "", text_style="dim")
        elif page.verbose and single.note:
            yield _Line(f"  {clean(single.note)}", "", text_style="dim")


def _label(entry: Entry) -> str:
    """An entry that stands alone in its component: both names, unless one says it all."""
    component, name = entry.component.replace("_", " "), clean(entry.name)
    return name if component in name or name in component else f"{component}: {name}"


def _draw(page: Page, lines: list[_Line], total: int, capacity: int | None) -> list[str]:
    number = max(cells(line.size) for line in lines)
    fixed = number + 2 + 2 + 2  # gap, number, letter, gap
    most = min(_LABEL_MOST, page.width - fixed - _BAR_LEAST)
    label = min(max(cells(line.label) for line in lines), max(most, 12))
    room = page.width - label - fixed - 1  # the last cell is the capacity's line
    scale = max(total, capacity or 0, 1)
    mark = None if capacity is None else round(capacity / scale * room)
    out = []
    for line in lines:
        lead = line.label[: len(line.label) - len(line.label.lstrip())]
        for k, text in enumerate(wrap(line.label.lstrip(), label - len(lead), "  ")):
            name = lead + text
            last = f"  {' ' * number}   " if k else f"  {line.size:>{number}} {line.letter or ' '} "
            bar = "" if k else _bar(page, line, room, scale, mark)
            painted = page.paint(name, line.text_style) + " " * (label - cells(name))
            out.append(f"{painted}{last} {bar}".rstrip())
    return out


def _bar(page: Page, line: _Line, room: int, scale: int, mark: int | None) -> str:
    start, stop = round(line.start / scale * room), round(line.stop / scale * room)
    row = [" "] * (room + 1)
    if line.stop > line.start:
        if stop == start:
            row[min(start, room - 1)] = page.thin
        row[start:stop] = [line.fill or page.full] * (stop - start)
    if mark is not None and row[mark] == " ":
        row[mark] = page.limit
    text = "".join(row).rstrip()
    filled = text.strip(" " + page.limit)
    return text.replace(filled, page.paint(filled, line.style), 1) if filled else text
