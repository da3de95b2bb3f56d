"""A trace as text and as a document: verdict, ledger, phases, the formula beside it, allocator settings, tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memfit.formula.runtime import RUNTIMES
from memfit.report.estimate import warnings
from memfit.report.json import SCHEMA_VERSION
from memfit.report.ledger import ledger
from memfit.report.page import Cell, Column, Page, Row, Style, clean, paragraph, table
from memfit.report.verdict import STYLES
from memfit.report.words import cards, gib, job_line, signed_gib

if TYPE_CHECKING:
    from memfit.ledger import Difference
    from memfit.trace.answer import Answer, Tensors

TENSORS = 20
"""Largest groups of tensors that are shown."""
_DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
_CLEAR = 0.02
"""A difference between formula and trace is coloured above this share of the traced peak."""


def trace_text(page: Page, answer: Answer) -> str:
    """The whole answer."""
    parts = [
        verdict(page, answer),
        ledger(page, answer.ledger, need=answer.needed[1]),
        peak(page, answer),
        phases(page, answer),
    ]
    parts += [formula(page, answer), settings(page, answer), tensors(page, answer)]
    parts += [warnings(page, answer.trace.warnings), notes(page, answer)]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def headline(answer: Answer) -> str:
    """The verdict in one sentence: what must be there, and what is."""
    need = span(answer.needed)
    if answer.capacity_bytes is None:
        return f"unknown: needs {need} GiB, traced; no card is named, so nobody knows whether it fits"
    return f"{answer.verdict}: needs {need} of {gib(answer.capacity_bytes)} GiB, traced"


def span(sizes: tuple[int, int]) -> str:
    """An interval in GiB; one number where both ends read the same."""
    low, high = gib(sizes[0]), gib(sizes[1])
    return low if low == high else f"{low} to {high}"


def verdict(page: Page, answer: Answer) -> list[str]:
    """Headline, card, job, and how it was traced."""
    lines = paragraph(page, headline(answer))
    word = answer.verdict
    lines[0] = page.paint(word, STYLES[word]) + lines[0].removeprefix(word)
    trace, predicted = answer.trace, answer.estimate
    if predicted is not None:
        if where := cards(predicted.resolved):
            lines += paragraph(page, f"  {where}", "    ")
        lines += paragraph(page, f"  {job_line(predicted)}", "    ")
    how = f"{len(trace.events)} events of {trace.steps} steps, engine {clean(trace.engine)}"
    if release := trace.settings.get("torch"):
        how += f", torch {clean(release)}"
    return lines + paragraph(page, f"  {how}, {clean(answer.label)}", "    ")


def peak(page: Page, answer: Answer) -> list[str]:
    """When the peak stands, what the card's own tools would show, and the smallest card."""
    trace, book = answer.trace, answer.ledger
    lines = paragraph(page, f"peak: {clean(book.moment)}")
    text = f"  torch allocated {gib(answer.peak[1])}, reserved {span(answer.reserved)}"
    limited = answer.on_card
    if limited is not None and limited.oom is None and limited.reserved_peak < answer.reserved[0]:
        text += f" without a limit and {gib(limited.reserved_peak)} on this card"
    if answer.outside:
        vendor = answer.estimate.resolved.vendor if answer.estimate is not None else "nvidia"
        text += f", {RUNTIMES[vendor][2]} {gib(book.device_bytes)}"
    lines += paragraph(page, f"{text} GiB", "    ")
    if answer.reserved[0] != answer.reserved[1]:
        text = "  the interval is what the order of addresses and the pace of other streams can change"
        lines += paragraph(page, text, "    ")
    if limited is not None and limited.oom is None and limited.num_alloc_retries:
        text = f"  on this card torch gives its cache back {limited.num_alloc_retries} times, which takes time"
        lines += paragraph(page, text, "    ")
    elif limited is not None and limited.oom is not None:
        text = f"  it runs out at event {limited.oom.index}: {clean(limited.oom.text)}"
        lines += paragraph(page, text, "    ")
    elif gib(answer.needed[1]) != gib(book.device_bytes):
        text = f"  {span(answer.needed)} of it must be there: torch gives cached blocks back before it runs out"
        lines += paragraph(page, text, "    ")
    first, steady = trace.first_peak, trace.steady_peak
    if first > steady:
        lines += paragraph(page, f"  the first step peaks at {gib(first)}, every later one at {gib(steady)}", "    ")
    card = answer.smallest_card
    if answer.estimate is not None:
        which = "no card that is known is large enough" if card is None else f"the smallest card: {clean(card.title)}"
        lines += paragraph(page, f"  {which}" + ("" if card is None else f" ({gib(card.total_bytes)} GiB)"), "    ")
    return lines


def phases(page: Page, answer: Answer) -> list[str]:
    """The peaks of each phase of the last step."""
    rows: list[Row] = [[p.name, gib(p.allocated_bytes), gib(p.reserved_bytes)] for p in answer.phases]
    columns = [Column("phase"), Column("allocated", "right"), Column("reserved", "right")]
    return table(page, columns, rows) if rows else []


def formula(page: Page, answer: Answer) -> list[str]:
    """What the formula says of the same job, component by component."""
    predicted = answer.estimate
    if predicted is None:
        return []
    rows: list[Row] = [_difference(answer, d.component.replace("_", " "), d) for d in answer.differences]
    reading = predicted.readings[answer.stage]
    for name, left, right in (
        ("allocated", reading.allocated, answer.peak[1]),
        ("reserved", reading.reserved, answer.reserved[1]),
    ):
        share = f" ({(left - right) / right:+.1%})" if right else ""
        rows.append([Cell(name, "bold"), gib(left), gib(right), _delta(answer, left - right, share)])
    columns = [Column("GiB", flex=True), Column("formula", "right"), Column("trace", "right")]
    return table(page, [*columns, Column("difference")], rows)


def _difference(answer: Answer, name: str, d: Difference) -> list[Cell | str]:
    return [name, gib(d.left_bytes), gib(d.right_bytes), _delta(answer, -d.delta_bytes)]


def _delta(answer: Answer, num_bytes: int, more: str = "") -> Cell:
    style: Style = "warn" if abs(num_bytes) > _CLEAR * max(answer.peak[1], 1) else ""
    return Cell(signed_gib(num_bytes) + more, style)


def settings(page: Page, answer: Answer) -> list[str]:
    """The same events under other allocator settings."""
    known = answer.capacity_bytes is not None
    rows: list[Row] = []
    for row in answer.what_if:
        cells: list[Cell | str] = [row.settings or "defaults", gib(row.reserved_peak), gib(row.smallest_capacity)]
        if known:
            cells += [Cell("fits", "good") if row.fits else Cell("runs out", "bad"), str(row.num_alloc_retries)]
        rows.append(cells)
    columns = [Column("PYTORCH_ALLOC_CONF", flex=True), Column("reserved", "right"), Column("needed", "right")]
    columns += [Column(""), Column("retries", "right")] if known else []
    lines = table(page, columns, rows) if rows else []
    for text in dict.fromkeys(text for row in answer.what_if for text in row.warnings):
        lines += paragraph(page, f"  {clean(text)}", "    ")
    return lines


def tensors(page: Page, answer: Answer) -> list[str]:
    """The largest tensors at the peak with module and source line."""
    shown = answer.tensors if page.verbose else answer.tensors[:TENSORS]
    rows: list[Row] = [[gib(t.bytes), f"x{t.num_blocks}", what(t), *where(t)] for t in shown]
    columns = [Column("GiB", "right"), Column("", "right"), Column("at the peak", flex=True)]
    lines = table(page, [*columns, Column("module", flex=True), Column("line", flex=True)], rows)
    left = len(answer.tensors) - len(shown)
    if left:
        size = gib(sum(t.bytes for t in answer.tensors[len(shown) :]))
        lines += paragraph(page, f"  {left} more with {size} GiB (all: -v)")
    return lines


def what(t: Tensors) -> str:
    """A group of tensors in words: what it holds, its operation, type and shape."""
    shape = f" {clean(_DTYPES.get(t.dtype, t.dtype))}[{','.join(map(str, t.shape))}]" if t.shape else ""
    return f"{t.component.replace('_', ' ')}: {clean(t.op.removeprefix('aten::'))}{shape}"


def where(t: Tensors) -> tuple[str, str]:
    """Module without what all have in common, and file with line, without the folder."""
    return clean(t.module.removeprefix("model.").removesuffix(".weight")), clean(t.source.rpartition("/")[2])


def notes(page: Page, answer: Answer) -> list[str]:
    """Shims and unlocks in effect."""
    return [page.paint(line, "dim") for text in answer.trace.notes for line in paragraph(page, f"note: {clean(text)}")]


def trace_document(answer: Answer) -> dict[str, Any]:
    """The answer as JSON-ready data; see docs/schema.md."""
    from memfit.formula.estimate import versions

    trace, book, predicted = answer.trace, answer.ledger, answer.estimate
    index, allocated = answer.peak
    event = trace.events[index] if index >= 0 else None
    card = answer.smallest_card
    return {
        "schema_version": SCHEMA_VERSION,
        "verdict": answer.verdict,
        "capacity_bytes": answer.capacity_bytes,
        "needed_bytes": list(answer.needed),
        "outside_bytes": answer.outside_bytes,
        "peak_bytes": {
            "requested": trace.peak_requested,
            "allocated": allocated,
            "reserved": answer.replay.reserved_peak,
            "device": answer.replay.reserved_peak + answer.outside_bytes,
        },
        "reserved_bytes": list(answer.reserved),
        "retries": None if answer.on_card is None else answer.on_card.num_alloc_retries,
        "out_of_memory": _oom(answer),
        "peak_event": None
        if event is None
        else {"index": index, "phase": event.phase, "step": event.step, "op": trace.blocks[event.id].op},
        "label": answer.label,
        "components": [
            {"name": e.component, "what": e.name, "bytes": e.bytes, "provenance": e.provenance} for e in book.entries
        ],
        "steps": [trace.peak(step=step)[1] for step in range(trace.steps)],
        "phases": [
            {"phase": p.name, "allocated_bytes": p.allocated_bytes, "reserved_bytes": p.reserved_bytes}
            for p in answer.phases
        ],
        "smallest_card": None if predicted is None or card is None else card.name,
        "formula": None
        if predicted is None
        else {
            "peak_bytes": predicted.readings[answer.stage].peak_bytes(),
            "differences": [
                {
                    "name": d.component,
                    "formula_bytes": d.left_bytes,
                    "traced_bytes": d.right_bytes,
                    "delta_bytes": -d.delta_bytes,
                }
                for d in answer.differences
            ],
        },
        "allocator": [
            {
                "settings": row.settings,
                "reserved_bytes": row.reserved_peak,
                "needed_bytes": row.smallest_capacity,
                "fits": row.fits,
                "retries": row.num_alloc_retries,
                "warnings": list(row.warnings),
            }
            for row in answer.what_if
        ],
        "tensors": [{**t._asdict(), "shape": list(t.shape)} for t in answer.tensors[:TENSORS]],
        "engine": trace.engine,
        "num_events": len(trace.events),
        "num_ops": trace.num_ops,
        "seconds": trace.seconds,
        "settings": trace.settings,
        "warnings": list(trace.warnings),
        "notes": list(trace.notes),
        "versions": versions(),
    }


def _oom(answer: Answer) -> dict[str, Any] | None:
    """The request that fails on the card."""
    failed = None if answer.on_card is None else answer.on_card.oom
    if failed is None:
        return None
    return {"event": failed.index, "requested_bytes": failed.requested, "text": failed.text}
