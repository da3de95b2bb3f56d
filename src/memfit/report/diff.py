"""Two jobs side by side: their ledgers, their times, and what each lever that differs does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memfit.ledger import compare
from memfit.report.json import SCHEMA_VERSION, result
from memfit.report.page import Cell, Column, Page, Row, Style, clean, paragraph, table
from memfit.report.plan import price_words, seconds
from memfit.report.verdict import STYLES, headline
from memfit.report.words import gib, job_line, moment, per_second, signed_gib, split, value

if TYPE_CHECKING:
    from memfit.planner.difference import Diff, Figures


def diff_document(found: Diff, names: tuple[str, str], *, full: bool = False) -> dict[str, Any]:
    """Both results, the differences of their ledgers (right minus left), and what each lever does."""
    return {
        "schema_version": SCHEMA_VERSION,
        "left": result(found.left, names[0], full=full),
        "right": result(found.right, names[1], full=full),
        "differences": [
            {
                "name": d.component,
                "left_bytes": d.left_bytes,
                "right_bytes": d.right_bytes,
                "delta_bytes": d.delta_bytes,
            }
            for d in compare(found.left.ledger, found.right.ledger)
        ],
        "time": {"left": _figures(found.a), "right": _figures(found.b)},
        "levers": [
            {
                "lever": change.lever,
                "fields": {n: {"left": _plain(a), "right": _plain(b)} for n, (a, b) in change.fields.items()},
                "delta_bytes": change.delta_bytes,
                "delta_s": change.delta_s,
                "usd_per_million_tokens": [change.before.usd_per_mtoken, change.after.usd_per_mtoken],
            }
            for change in found.changes
        ],
    }


def _figures(figures: Figures) -> dict[str, Any]:
    return {
        "seconds": figures.seconds,
        "tokens_per_s_per_gpu": figures.tokens_per_s_per_gpu,
        "usd_per_million_tokens": figures.usd_per_mtoken,
        "price_source": None if figures.price is None else f"{figures.price.provider}: {figures.price.source}",
        "price_date": None if figures.price is None else figures.price.date,
    }


def _plain(item: Any) -> Any:
    from memfit.job import Lora

    if isinstance(item, Lora):
        return {n: _plain(getattr(item, n)) for n in Lora.__dataclass_fields__}
    return list(item) if isinstance(item, tuple) else item


def diff_text(page: Page, found: Diff, names: tuple[str, str]) -> str:
    """Headlines, the ledgers with totals, the times, then the levers."""
    left, right = found.left, found.right
    lines: list[str] = []
    for letter, name, estimate in (("A", names[0], left), ("B", names[1], right)):
        text = headline(estimate)
        painted = paragraph(page, f"{letter} {text}", "    ")
        word = estimate.verdict
        painted[0] = painted[0].replace(word, page.paint(word, STYLES[word]), 1)
        lines += painted
        told = "" if name == estimate.job.model.name else f"{clean(name)}: "
        lines += paragraph(page, f"  {told}{job_line(estimate)}", "    ")
    rows: list[Row] = [
        [d.component.replace("_", " "), gib(d.left_bytes), gib(d.right_bytes), _delta(d.delta_bytes)]
        for d in compare(left.ledger, right.ledger)
    ]
    a, b = left.device_bytes, right.device_bytes
    rows.append([Cell("at the peak", "bold"), Cell(gib(a), "bold"), Cell(gib(b), "bold"), _delta(b - a)])
    one, other = left.ledger.free_bytes, right.ledger.free_bytes
    if one is not None and other is not None:
        rows.append(["free", gib(one), gib(other), signed_gib(other - one)])
    columns = [Column("GiB", flex=True), Column("A", "right"), Column("B", "right"), Column("B - A", "right")]
    lines += ["", *table(page, columns, rows), ""]
    lines += _times(page, found)
    lines += _levers(page, found)
    for letter, estimate in (("A", left), ("B", right)):
        lines += paragraph(page, f"{letter} peaks at {moment(estimate)}")
    return "\n".join(lines) + "\n"


def total_text(found: Diff) -> str:
    """The difference of the totals alone."""
    a, b = found.left.device_bytes, found.right.device_bytes
    return f"{signed_gib(b - a)} GiB: {gib(a)} to {gib(b)} GiB\n"


def _times(page: Page, found: Diff) -> list[str]:
    a, b = found.a, found.b
    unit = "seconds a token" if found.left.resolved.values["kind"] == "serve" else "step"
    rows: list[Row] = []
    if a.seconds is not None and b.seconds is not None:
        rows.append([unit, seconds(a.seconds), seconds(b.seconds), _later(b.seconds - a.seconds)])
    if a.tokens_per_s_per_gpu and b.tokens_per_s_per_gpu:
        one, other = a.tokens_per_s_per_gpu, b.tokens_per_s_per_gpu
        rows.append(["tokens/s/GPU", per_second(one), per_second(other), f"{other / one - 1:+.0%}"])
    if a.usd_per_mtoken is not None and b.usd_per_mtoken is not None:
        one, other = a.usd_per_mtoken, b.usd_per_mtoken
        gap = f"{other / one - 1:+.0%}" if one else ""
        rows.append(["$ per million tokens", f"{one:.3g}", f"{other:.3g}", gap])
    if not rows:
        return []
    columns = [Column("time", flex=True), Column("A", "right"), Column("B", "right"), Column("B - A", "right")]
    return [*table(page, columns, rows), *_prices(page, found), ""]


def _prices(page: Page, found: Diff) -> list[str]:
    """What the dollars rest on."""
    told = [
        f"${f.price.per_hour(f.gpus):,.2f} an hour ({price_words(f.price, f.gpus)})"
        for f in (found.a, found.b)
        if f.price is not None and f.usd_per_mtoken is not None
    ]
    if len(told) < 2:
        return []
    one, other = told
    return paragraph(page, f"prices: {one} for both" if one == other else f"prices: A {one}; B {other}")


def _levers(page: Page, found: Diff) -> list[str]:
    if not found.changes:
        return []
    rows: list[Row] = []
    for change in found.changes:
        told = ", ".join(f"{n} {_short(n, a)} -> {_short(n, b)}" for n, (a, b) in change.fields.items())
        time = "" if change.delta_s is None else _later(change.delta_s)
        rows.append([told, _delta(change.delta_bytes), time])
    columns = [Column("from A to B, one after the other", flex=True), Column("GiB", "right"), Column("time", "right")]
    return [*table(page, columns, rows), ""]


def _short(name: str, item: Any) -> str:
    from memfit.job import Lora

    if name == "pp_layers":
        return split(item) if item else "as the framework splits"
    if isinstance(item, Lora):
        return f"rank {item.rank}"
    return "none" if item is None else value(item)


def _delta(num_bytes: int) -> Cell:
    style: Style = "good" if num_bytes < 0 else "bad" if num_bytes > 0 else ""
    return Cell(signed_gib(num_bytes), style)


def _later(amount: float) -> Cell:
    if not amount:
        return Cell("0 s")
    style: Style = "good" if amount < 0 else "bad"
    return Cell(f"{'+' if amount > 0 else '-'}{seconds(abs(amount))}", style)
