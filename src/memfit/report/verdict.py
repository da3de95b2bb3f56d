"""The first lines of every answer: whether the job fits, by how much, and which job it was."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memfit.report.page import Page, Style, clean, paragraph
from memfit.report.words import cards, gib, job_line, percent

if TYPE_CHECKING:
    from memfit.formula.estimate import Estimate
    from memfit.ledger import Band

STYLES: dict[str, Style] = {"fits": "good", "tight": "warn", "does not fit": "bad", "unknown": "warn"}


def need_of(estimate: Estimate) -> Band:
    """What must be there for the job to finish; cached blocks that the allocator can give back do not count."""
    return estimate.bands.get("need", estimate.bands["device"])


def headline(estimate: Estimate) -> str:
    """The verdict in one sentence with need, band, capacity and the probability of running out."""
    need = need_of(estimate)
    text = f"{estimate.verdict}: needs {gib(need.mid)} GiB ({gib(need.low)} to {gib(need.high)})"
    if estimate.capacity_bytes is None or estimate.p_oom is None:
        return f"{text}; no card is named, so nobody knows whether it fits"
    return f"{text} of {gib(estimate.capacity_bytes)} GiB, P(OOM) {percent(estimate.p_oom)}"


def verdict(page: Page, estimate: Estimate) -> list[str]:
    """Headline, card and job."""
    head = paragraph(page, headline(estimate))
    word = estimate.verdict
    head[0] = page.paint(word, STYLES[word]) + head[0].removeprefix(word) if head[0].startswith(word) else head[0]
    lines = head
    resolved = estimate.resolved
    if where := cards(resolved):
        lines += paragraph(page, f"  {where}", "    ")
    lines += paragraph(page, f"  {job_line(estimate)}", "    ")
    if resolved.arch_origin and not resolved.arch_origin.startswith("catalog"):
        lines += paragraph(page, f"  model from {clean(resolved.arch_origin)}", "    ")
    return lines
