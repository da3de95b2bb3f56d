"""An estimate as text: verdict, ledger, moment of the peak, assumptions, what would save most, what to run next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from memfit.formula.runtime import RUNTIMES
from memfit.job import BY_NAME
from memfit.report.ledger import ledger
from memfit.report.page import Cell, Column, Page, Row, Style, clean, paragraph, table
from memfit.report.verdict import headline, need_of, verdict
from memfit.report.words import gib, moment, per_second, seconds, signed_gib, value

if TYPE_CHECKING:
    from memfit.formula.estimate import Estimate

_CHANGES = 3
_ASSUMPTIONS = 6
_WORTH_SAYING = 0.005 * (1 << 30)


def estimate_text(page: Page, estimate: Estimate, *, command: str | None = None) -> str:
    """The whole answer.

    Args:
        page: what it is written on.
        estimate: the result.
        command: the command line that asked, for the hint what to run next; None leaves the hint out.
    """
    parts = [
        verdict(page, estimate),
        ledger(page, estimate.ledger, need=need_of(estimate).mid),
        peak(page, estimate),
        time(page, estimate),
    ]
    parts += [stages(page, estimate), warnings(page, estimate.warnings)]
    parts += [assumptions(page, estimate), changes(page, estimate)]
    if command is not None:
        parts.append([f"{page.paint('next:', 'bold')} {next_command(estimate, command)}"])
    if page.verbose:
        parts.append(versions(page))
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def quiet_text(page: Page, estimate: Estimate) -> str:
    """The verdict alone."""
    del page
    return headline(estimate) + "\n"


def peak(page: Page, estimate: Estimate) -> list[str]:
    """When the peak stands, on which rank, and what the card's own tools would show."""
    book = estimate.ledger
    band = estimate.bands["device"]
    lines = paragraph(page, f"peak: {moment(estimate)}, on {clean(book.label)}")
    allocated, reserved = gib(book.allocated_bytes), gib(book.reserved_bytes)
    tool = RUNTIMES[estimate.resolved.vendor][2]
    lines += paragraph(
        page,
        f"  torch allocated {allocated}, reserved {reserved}, {tool} {gib(book.device_bytes)} GiB"
        f" ({gib(band.low)} to {gib(band.high)})",
        "    ",
    )
    need = gib(need_of(estimate).mid)
    if need_of(estimate).mid < book.device_bytes and need != gib(book.device_bytes):
        lines += paragraph(
            page, f"  {need} of it must be there: torch gives cached blocks back before it runs out", "    "
        )
    if estimate.host_bytes:
        lines += paragraph(page, f"  pinned host memory: {gib(estimate.host_bytes)} GiB for each rank", "    ")
    return lines


def time(page: Page, estimate: Estimate) -> list[str]:
    """How long a step takes, in a line; its parts on a verbose page; nothing where only memory was asked for."""
    from memfit.speed.estimate import Estimate as Timed
    from memfit.speed.serving import lengths

    found = estimate.time if isinstance(estimate, Timed) else None
    if found is None:
        return []
    rate = f"{per_second(found.tokens_per_s_per_gpu)} tokens/s for each GPU"
    if found.ttft_s is None:
        lines = paragraph(page, f"time: {seconds(found.step_s)} a step, {rate}")
    else:
        prompt, output = lengths(estimate.resolved)
        first = f"{seconds(found.ttft_s)} to the first token, {seconds(found.step_s)} for each further one"
        lines = paragraph(page, f"time: {first}, {rate} (prompt {prompt}, output {output})")
    if page.verbose:
        rows: list[Row] = [
            [Cell(seconds(s)), Cell(f"{s / found.step_s:.0%}"), clean(what)] for _, what, s in found.lines()
        ]
        columns = [Column("time", "right"), Column("share", "right"), Column("part", flex=True)]
        lines += table(page, columns, rows)
    return lines


def stages(page: Page, estimate: Estimate) -> list[str]:
    """All pipeline stages, neighbours that are alike in one row; nothing for a single stage."""
    if len(estimate.stages) < 2:
        return []
    rows: list[Row] = []
    runs: list[tuple[int, int]] = []
    for index, book in enumerate(estimate.stages):
        if runs and _like(estimate, runs[-1][0], index):
            runs[-1] = (runs[-1][0], index)
        else:
            runs.append((index, index))
        del book
    for first, last in runs:
        book = estimate.stages[first]
        fullest = first <= estimate.fullest <= last
        style: Style = "bold" if fullest else ""
        name = str(first) if first == last else f"{first}-{last}"
        sizes = (book.allocated_bytes, book.reserved_bytes, book.device_bytes)
        moment = clean(book.moment) + (", the fullest" if fullest else "")
        rows.append([Cell(name, style), *(Cell(gib(size), style) for size in sizes), Cell(moment, style)])
    columns = [
        Column("stage"),
        Column("allocated", "right"),
        Column("reserved", "right"),
        Column("card", "right"),
        Column("fullest at", flex=True),
    ]
    return table(page, columns, rows)


def _like(estimate: Estimate, one: int, other: int) -> bool:
    a, b = estimate.stages[one], estimate.stages[other]
    same = (a.allocated_bytes, a.device_bytes, a.moment) == (b.allocated_bytes, b.device_bytes, b.moment)
    return same and estimate.fullest not in (one, other)


def warnings(page: Page, texts: tuple[str, ...]) -> list[str]:
    """Each warning as a line of its own."""
    lines = []
    for text in texts:
        first, *rest = paragraph(page, f"warning: {clean(text)}")
        lines += [first.replace("warning:", page.paint("warning:", "warn"), 1), *rest]
    return lines


def assumptions(page: Page, estimate: Estimate) -> list[str]:
    """What nobody stated and what its alternative would do to the reserved peak, largest effect first."""
    found = estimate.assumptions
    if not found:
        return []
    worth = [a for a in found if abs(a.delta_bytes) >= _WORTH_SAYING]
    shown = found if page.verbose else worth[:_ASSUMPTIONS]
    rows: list[Row] = [
        [
            f"{short(a.field)} = {value(a.value)}{f' ({a.reason})' if a.reason else ''}",
            f"{value(a.alternative)}",
            Cell(signed_gib(a.delta_bytes)),
        ]
        for a in shown
    ]
    columns = [Column("assumed", flex=True), Column("instead", flex=True), Column("GiB", "right")]
    lines = table(page, columns, rows) if rows else []
    left = len(found) - len(shown)
    if left:
        lines += paragraph(page, f"  {left} more worth less (all: -v)")
    return lines


def changes(page: Page, estimate: Estimate) -> list[str]:
    """The changes of the job that save most, with the flags that make them."""
    found = estimate.changes
    if not found:
        return []
    rows: list[Row] = [
        [Cell(signed_gib(c.delta_bytes), "good"), clean(c.what), flags(c.fields)]
        for c in (found if page.verbose else found[:_CHANGES])
    ]
    columns = [Column("GiB", "right"), Column("would save", flex=True), Column("flags", flex=True)]
    return table(page, columns, rows)


def versions(page: Page) -> list[str]:
    """Versions of the code and the data behind the result."""
    from memfit.formula.estimate import versions as known

    text = ", ".join(f"{name} {version}" for name, version in known().items())
    return [page.paint(line, "dim") for line in paragraph(page, text)]


def short(path: str) -> str:
    """A dotted field path as its flat name."""
    return path.removeprefix("task.lora.") if path.startswith("task.lora.") else path.rpartition(".")[2]


def flags(fields: Mapping[str, Any]) -> str:
    """Overrides as command-line flags; what is None is left to be derived and has none."""
    words = []
    for name, item in fields.items():
        spec = BY_NAME.get(name)
        if item is None or spec is None:
            continue
        flag = next(f for f in spec.flags if f.startswith("--"))
        if spec.type == "bool":
            words.append(flag if item else flag.replace("--", "--no-", 1))
        else:
            words.append(f"{flag} {value(item)}")
    return " ".join(words)


def _without(command: str, fields: Mapping[str, Any]) -> str:
    """The command line without the flags of these fields, which are to be stated anew."""
    specs = [spec for name in fields if (spec := BY_NAME.get(name)) is not None]
    told = {flag: spec.type != "bool" for spec in specs for flag in spec.flags}
    told |= {flag.replace("--", "--no-", 1): False for flag, takes in told.items() if not takes}
    words, kept = iter(shlex.split(command)), []
    for word in words:
        flag = word.partition("=")[0]
        if flag not in told:
            kept.append(word)
        elif told[flag] and "=" not in word:
            next(words, None)
    return shlex.join(kept)


def next_command(estimate: Estimate, command: str) -> str:
    """What to run next: name a card, take the best change, or see how far the job stretches."""
    from memfit.formula.estimate import TIGHT

    if estimate.capacity_bytes is None:
        return f"{command} --gpu 8xh100"
    helpful = [c for c in estimate.changes if flags(c.fields)]
    if estimate.verdict != "fits" and helpful:
        risk = {c.what: 1.0 if c.p_oom is None else c.p_oom for c in helpful}
        enough = [c for c in helpful if risk[c.what] <= TIGHT]
        # the smallest change that is enough, else the one that comes nearest, of equals the one that saves most
        best = enough[-1] if enough else min(helpful, key=lambda c: risk[c.what])
        return f"{_without(command, best.fields)} {flags(best.fields)}"
    axis = "concurrency=1..64" if estimate.resolved.values["kind"] == "serve" else "micro_batch=1..64"
    return f"{command} --sweep {axis}"
