"""An estimate as HTML for notebooks: a static table and one SVG bar, no script, nothing from outside unescaped."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from memfit.ledger import COMPONENTS
from memfit.report.estimate import flags, short
from memfit.report.ledger import remainder
from memfit.report.page import clean
from memfit.report.verdict import headline, need_of
from memfit.report.words import cards, gib, job_line, moment, signed_gib, value

if TYPE_CHECKING:
    from memfit.formula.estimate import Estimate
    from memfit.ledger import Ledger

# The palette of Okabe and Ito (2008), told apart with all common kinds of colour vision.
COLORS = {
    "parameters": "#0072B2",
    "gradients": "#56B4E9",
    "optimizer": "#CC79A7",
    "activations": "#009E73",
    "logits": "#E69F00",
    "workspace": "#D55E00",
    "communication": "#F0E442",
    "kv_cache": "#009E73",
    "state": "#56B4E9",
    "slack": "#BBBBBB",
    "runtime": "#888888",
    "others": "#666666",
    "unaccounted": "#000000",
}
_WIDTH, _HEIGHT = 640, 26
_CELL = 'style="text-align:right;padding:1px 8px"'
_TEXT = 'style="text-align:left;padding:1px 8px"'


def estimate_html(estimate: Estimate) -> str:
    """A fragment: headline, bar to the capacity, ledger, the changes that save most."""
    book = estimate.ledger
    title = f"<p><b>{_e(headline(estimate))}</b><br>{_e(_subject(estimate))}</p>"
    peak = f"<p>peak: {_e(moment(estimate))}, on {_e(book.label)}</p>"
    notes = "".join(f"<p>warning: {_e(text)}</p>" for text in estimate.warnings)
    table = _table(book, need_of(estimate).mid)
    return f'<div class="memfit">{title}{_bar(book)}{table}{peak}{notes}{_others(estimate)}</div>'


def _e(text: object) -> str:
    return escape(clean(text), quote=True)


def _subject(estimate: Estimate) -> str:
    where = cards(estimate.resolved)
    return f"{where}; {job_line(estimate)}" if where else job_line(estimate)


def _bar(book: Ledger) -> str:
    """Stacked components; the line is the capacity."""
    scale = max(book.device_bytes, book.capacity_bytes or 0, 1)
    parts, at = [], 0.0
    for name, size in book.by_component().items():
        width = max(size, 0) / scale * _WIDTH
        tip = f"{name.replace('_', ' ')} {gib(size)} GiB"
        parts.append(
            f'<rect x="{at:.1f}" y="2" width="{width:.1f}" height="{_HEIGHT - 4}" fill="{COLORS[name]}">'
            f"<title>{_e(tip)}</title></rect>"
        )
        at += width
    if book.capacity_bytes is not None:
        x = min(book.capacity_bytes / scale * _WIDTH, _WIDTH - 1)
        parts.append(
            f'<rect x="{x:.1f}" y="0" width="2" height="{_HEIGHT}" fill="currentColor"><title>capacity</title></rect>'
        )
    label = f"{gib(book.device_bytes)} GiB used"
    if book.capacity_bytes is not None:
        label += f" of {gib(book.capacity_bytes)} GiB"
    return (
        f'<svg role="img" aria-label="{_e(label)}" width="{_WIDTH}" height="{_HEIGHT}" '
        f'viewBox="0 0 {_WIDTH} {_HEIGHT}" xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )


def _table(book: Ledger, need: int) -> str:
    rows = []
    for entry in book.entries:
        swatch = f'<span style="color:{COLORS[entry.component]}" aria-hidden="true">&#9632;</span>'
        rows.append(
            f'<tr><td {_TEXT} title="{_e(COMPONENTS[entry.component])}">{swatch} '
            f"{_e(entry.component.replace('_', ' '))}</td><td {_TEXT}>{_e(entry.name)}</td>"
            f"<td {_CELL}>{gib(entry.bytes)}</td><td {_TEXT}>{_e(entry.provenance)}</td></tr>"
        )
    total = f"<tr><th {_TEXT}>at the peak</th><td></td><th {_CELL}>{gib(book.device_bytes)}</th><td></td></tr>"
    if book.capacity_bytes is not None and book.free_bytes is not None:
        name = remainder(book, need)
        total += f"<tr><td {_TEXT}>{name}</td><td></td><td {_CELL}>{gib(abs(book.free_bytes))}</td><td></td></tr>"
        total += f"<tr><td {_TEXT}>capacity</td><td></td><td {_CELL}>{gib(book.capacity_bytes)}</td><td></td></tr>"
    head = f"<tr><th {_TEXT}>component</th><th {_TEXT}></th><th {_CELL}>GiB</th><th {_TEXT}>origin</th></tr>"
    return f"<table><thead>{head}</thead><tbody>{''.join(rows)}{total}</tbody></table>"


def _others(estimate: Estimate) -> str:
    lists = []
    if estimate.changes:
        items = "".join(
            f"<li>{signed_gib(c.delta_bytes)} GiB: {_e(c.what)} <code>{_e(flags(c.fields))}</code></li>"
            for c in estimate.changes[:3]
        )
        lists.append(f"<p>would save</p><ul>{items}</ul>")
    if estimate.assumptions:
        items = "".join(
            f"<li>{_e(short(a.field))} = {_e(value(a.value))}{_e(f' ({a.reason})' if a.reason else '')}, "
            f"not {_e(value(a.alternative))}: "
            f"{signed_gib(a.delta_bytes)} GiB</li>"
            for a in estimate.assumptions[:6]
        )
        lists.append(f"<p>assumed, and what the other value would do</p><ul>{items}</ul>")
    return "".join(lists)
