"""Where text goes: its width, whether it takes colour and which characters; tables and wrapped lines for it.

Widths are terminal cells: an East Asian wide character takes two. Numbers are never cut; text wraps.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Style = Literal[
    "", "bold", "dim", "good", "bad", "warn", "P", "G", "O", "A", "L", "W", "C", "K", "S", "s", "R", "X", "?"
]  # fmt: skip
"""Meanings, and the letters of the components (see ``words.MARKS``)."""

# The sixteen colours every terminal has, none of them near black or white: legible on light and dark.
_ANSI: dict[str, str] = {
    "bold": "1",
    "dim": "2",
    "good": "32",
    "bad": "31",
    "warn": "33",
    "P": "34",
    "G": "36",
    "O": "35",
    "A": "32",
    "L": "33",
    "W": "31",
    "C": "36",
    "K": "32",
    "S": "36",
    "s": "2",
    "R": "2",
    "X": "2",
    "?": "31",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """What the text is written on.

    Attributes:
        width: cells in a line.
        color: whether ANSI colours are written.
        unicode: whether block characters are written; else ASCII stands in.
        verbose: whether notes, all stages and all assumptions are shown.
    """

    width: int = 80
    color: bool = False
    unicode: bool = True
    verbose: bool = False

    @property
    def full(self) -> str:
        """A filled cell of a bar."""
        return "█" if self.unicode else "#"

    @property
    def thin(self) -> str:
        """A cell of a bar that holds less than half a cell."""
        return "▏" if self.unicode else ":"

    @property
    def free(self) -> str:
        """A cell of room that is left."""
        return "░" if self.unicode else "."

    @property
    def limit(self) -> str:
        """The line of the capacity."""
        return "│" if self.unicode else "|"

    def paint(self, text: str, style: Style) -> str:
        """The text in a style, or as it is on a page without colour."""
        return f"\x1b[{_ANSI[style]}m{text}\x1b[0m" if self.color and style and text else text


def clean(text: object) -> str:
    """Text from outside without control, escape and bidirectional characters."""
    return "".join(c for c in str(text) if c.isprintable())


def cells(text: str) -> int:
    """Cells that a text without escapes takes."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


# Where a long word may break: after a hyphen, slash or equals sign; after a dot, comma or colon that is in no number.
_SEAMS = re.compile(r"(?<=\w[-/=])(?=\w)|(?<=\w[.,:])(?=[^\W\d])")


def wrap(text: str, width: int, indent: str = "") -> list[str]:
    """Lines of at most ``width`` cells, broken at spaces (inside a word only where it is longer than a line).

    Args:
        text: one paragraph.
        width: cells, the indent counted.
        indent: what all lines but the first begin with.
    """
    lines: list[str] = []
    lead = text[: len(text) - len(text.lstrip(" "))]
    line, room = "", max(width - cells(lead), 8)
    for word in text.split():
        rest = word
        while True:
            joined = f"{line} {rest}" if line else rest
            if cells(joined) <= room:
                line = joined
                break
            if line:
                lines.append(line)
                line = ""
            else:
                head = _head(rest, room)
                lines.append(head)
                rest = rest[len(head) :]
            room = max(width - cells(indent), 8)
    lines.append(line)
    return [lead + lines[0], *(indent + other for other in lines[1:])]


def _head(word: str, room: int) -> str:
    """The part of a word that a line takes: up to its last seam there, else as many characters as there is room for."""
    seams = [seam.start() for seam in _SEAMS.finditer(word) if cells(word[: seam.start()]) <= room]
    if seams:
        return word[: seams[-1]]
    size, used = 0, 0
    for character in word:
        used += cells(character)
        if used > room and size:
            break
        size += 1
    return word[: max(size, 1)]


def paragraph(page: Page, text: str, indent: str = "  ") -> list[str]:
    """A wrapped paragraph whose continuation lines are indented."""
    return wrap(text, page.width, indent)


class Cell(NamedTuple):
    """One cell of a table."""

    text: str
    style: Style = ""


Row = Sequence[Cell | str]
"""The cells of one row, as many as columns."""


class Column(NamedTuple):
    """One column: ``flex`` ones wrap or leave the line when the page is narrow, others keep their width."""

    title: str
    align: Literal["left", "right"] = "left"
    flex: bool = False


_GAP = 2
_HANG = "  "  # of the further lines of a cell
_BELOW = "    "  # of a cell that has a line to itself
_LEAST = 16  # cells of a flexible column: narrower ones do not read well
_LONG = 20  # cells of a word that may be broken at a seam to keep its column in the line


def table(page: Page, columns: Sequence[Column], rows: Iterable[Row], *, indent: str = "") -> list[str]:
    """A table without borders as lines; trailing spaces are left out.

    On a narrow page flexible columns wrap. Where words would break, the last of them get a line of their own below
    the row (the first column: above it). Other columns keep their width, if need be past the page.

    Args:
        page: what it is written on.
        columns: titles and alignment; no title row is written when all titles are empty.
        rows: cells, as many as columns.
        indent: what each line begins with.
    """
    body = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in rows]
    heads = [[Cell(c.title, "dim") for c in columns]] if any(c.title for c in columns) else []
    widths = _widths(columns, [[Cell(c.title) for c in columns], *body], page.width - cells(indent))
    return [line for row in (*heads, *body) for line in _row(page, columns, widths, row, indent)]


def _widths(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], room: int) -> dict[int, int]:
    """Cells of each column that stays in the line; the others get lines of their own."""
    widths = {i: max(cells(row[i].text) for row in rows) for i in range(len(columns))}
    least = {i: _least(row[i].text for row in rows) if c.flex else widths[i] for i, c in enumerate(columns)}
    while len(widths) > 1:
        over = sum(min(widths[i], least[i]) for i in widths) + _GAP * (len(widths) - 1) - room
        flexible = [i for i in widths if columns[i].flex]
        if over <= 0 or not flexible:
            break
        del widths[flexible[-1]]
    over = sum(widths.values()) + _GAP * (len(widths) - 1) - room
    order = sorted(widths, key=lambda i: -widths[i])
    while over > 0 and (wide := [i for i in order if widths[i] > least[i]]):
        widths[max(wide, key=lambda i: widths[i])] -= 1
        over -= 1
    return widths


def _least(texts: Iterable[str]) -> int:
    words = (word for text in texts for word in text.split())
    pieces = (piece for word in words for piece in (_SEAMS.split(word) if cells(word) > _LONG else [word]))
    return max(_LEAST, len(_HANG) + max(map(cells, pieces), default=0))


def _row(
    page: Page, columns: Sequence[Column], widths: dict[int, int], row: Sequence[Cell], indent: str
) -> Iterator[str]:
    alone = [i for i in range(len(columns)) if i not in widths and row[i].text]
    if alone[:1] == [0]:
        yield from _alone(page, row[alone.pop(0)], indent)
    wrapped = {i: wrap(row[i].text, width, _HANG) for i, width in widths.items()}
    for k in range(max(len(part) for part in wrapped.values())):
        parts = []
        for i, lines in wrapped.items():
            text = lines[k] if k < len(lines) else ""
            space = " " * (widths[i] - cells(text))
            painted = page.paint(text, row[i].style)
            parts.append(space + painted if columns[i].align == "right" else painted + space)
        yield (indent + (" " * _GAP).join(parts)).rstrip()
    for i in alone:
        yield from _alone(page, row[i], indent + _BELOW)


def _alone(page: Page, cell: Cell, indent: str) -> Iterator[str]:
    for line in wrap(cell.text, page.width - len(indent), _HANG):
        yield indent + page.paint(line, cell.style)
