"""A dry run as text and as a document: whether it fits, the real out-of-memory error, and what a trace answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from memfit.report.estimate import warnings
from memfit.report.ledger import ledger
from memfit.report.page import Cell, Column, Page, Row, clean, paragraph, table
from memfit.report.trace import notes, phases, settings, span, tensors, trace_document
from memfit.report.verdict import STYLES
from memfit.report.words import gib

if TYPE_CHECKING:
    from memfit.mirage.run import DryRun
    from memfit.mirage.run.facts import Failure

_FRAMES = 8
"""Levels of a traceback that are shown: the script's own and the last."""
_SITE = "/site-packages/"


def dryrun_text(page: Page, run: DryRun) -> str:
    """The whole answer of one process."""
    answer = run.answer
    parts = [verdict(page, run), failure(page, run), ledger(page, answer.ledger), peak(page, run)]
    parts += [phases(page, answer), settings(page, answer), tensors(page, answer)]
    parts += [warnings(page, answer.trace.warnings), notes(page, answer)]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def stages_text(page: Page, runs: Sequence[DryRun]) -> str:
    """All pipeline stages in a table, then the fullest one in full."""
    fullest = max(runs, key=lambda run: run.answer.needed[1])
    rows: list[Row] = []
    for stage, run in enumerate(runs):
        fits = Cell("fits", "good") if run.fits else Cell("runs out", "bad")
        sizes = [gib(run.facts.allocated_peak), gib(run.facts.reserved_peak), span(run.answer.needed)]
        rows.append([str(stage), str(run.options.rank), *sizes, fits])
    columns = [Column("stage", "right"), Column("rank", "right"), Column("allocated", "right")]
    columns += [Column("reserved", "right"), Column("needed", "right"), Column("")]
    lines = table(page, columns, rows)
    lines += paragraph(page, f"GiB; below is stage {runs.index(fullest)}, which needs most")
    return "\n".join(lines) + "\n\n" + dryrun_text(page, fullest)


def headline(run: DryRun) -> str:
    """The verdict in one sentence."""
    answer = run.answer
    capacity = gib(answer.capacity_bytes or 0)
    word = "fits" if run.fits else "does not fit"
    return f"{word}: needs {span(answer.needed)} of {capacity} GiB, run on an imaginary {clean(run.gpu.title)}"


def verdict(page: Page, run: DryRun) -> list[str]:
    """Headline, command, how far it came."""
    lines = paragraph(page, headline(run))
    word = "fits" if run.fits else "does not fit"
    lines[0] = page.paint(word, STYLES[word]) + lines[0].removeprefix(word)
    lines += paragraph(page, f"  $ {clean(' '.join(run.options.command))[:400]}", "    ")
    facts = run.facts
    how = f"torch {clean(facts.torch)}, {run.answer.label}"
    if ranks := run.answer.trace.settings.get("ranks") or run.options.ranks:
        how += f" of {clean(ranks)}"
    steps = f"{facts.steps} optimizer step{'' if facts.steps == 1 else 's'}"
    how += f", {steps} in {run.seconds:.0f} s, {gib(run.ended.host_peak_bytes)} GiB of this machine's memory"
    return lines + paragraph(page, f"  {how}", "    ")


def failure(page: Page, run: DryRun) -> list[str]:
    """PyTorch's own out-of-memory error with its stack; or what else ended the script."""
    lines: list[str] = []
    if run.oom is not None:
        lines += _error(page, run.oom, "on this card it ends with")
    if run.failure is not None:
        lines += _error(page, run.failure, "the report covers what came before the script ended with")
    return lines


def _error(page: Page, error: Failure, lead: str) -> list[str]:
    lines = paragraph(page, page.paint(f"{lead} {clean(error.type)}:", "bad"))
    lines += paragraph(page, f"  {clean(' '.join(error.text.split()))[:1200]}", "  ")
    frames = error.frames
    own = [i for i, frame in enumerate(frames) if _SITE not in frame.file and "/lib/python" not in frame.file]
    shown = sorted({*own[-_FRAMES // 2 :], *range(max(len(frames) - _FRAMES // 2, 0), len(frames))})
    for index in shown:
        frame = frames[index]
        name = frame.file.rpartition(_SITE)[2] if _SITE in frame.file else frame.file.rpartition("/")[2]
        lines += paragraph(page, f"  {clean(name)}:{frame.line} {clean(frame.name)}: {clean(frame.code)[:120]}", "    ")
    return lines


def peak(page: Page, run: DryRun) -> list[str]:
    """When the peak stands, what PyTorch's own statistics say, and the smallest card."""
    answer, facts = run.answer, run.facts
    lines = paragraph(page, f"peak: {clean(answer.ledger.moment)}")
    where = "on this card" if run.fits else "without a limit"
    text = (
        f"  torch's own peaks {where}: allocated {gib(facts.allocated_peak)}, reserved {gib(facts.reserved_peak)} GiB"
    )
    if facts.num_alloc_retries:
        text += f"; it gave its cache back {facts.num_alloc_retries} times, which takes time"
    lines += paragraph(page, text, "    ")
    lines += paragraph(
        page,
        f"  it finishes from {span(answer.needed)} GiB on, of which {gib(answer.outside_bytes)} is the CUDA context",
        "    ",
    )
    trace = answer.trace
    if trace.first_peak > trace.steady_peak:
        first, steady = gib(trace.first_peak), gib(trace.steady_peak)
        lines += paragraph(page, f"  the first step peaks at {first}, the last at {steady}", "    ")
    card = answer.smallest_card
    which = "no card that is known is large enough" if card is None else f"the smallest card: {clean(card.title)}"
    lines += paragraph(page, f"  {which}" + ("" if card is None else f" ({gib(card.total_bytes)} GiB)"), "    ")
    return lines


def dryrun_document(run: DryRun) -> dict[str, Any]:
    """The answer as JSON-ready data: that of a trace, and what the run adds."""
    document = trace_document(run.answer)
    card = run.answer.smallest_card
    facts = run.facts
    return {
        **document,
        "verdict": "fits" if run.fits else "does not fit",
        "smallest_card": None if card is None else card.name,
        "run": {
            "command": list(run.options.command),
            "rank": run.options.rank,
            "ranks": run.options.ranks,
            "gpu": run.gpu.name,
            "torch": facts.torch,
            "python": facts.python,
            "ending": facts.ending,
            "steps": facts.steps,
            "exit_code": run.ended.code,
            "seconds": run.seconds,
            "host_peak_bytes": run.ended.host_peak_bytes,
            "allocated_peak_bytes": facts.allocated_peak,
            "reserved_peak_bytes": facts.reserved_peak,
            "retries": facts.num_alloc_retries,
            "out_of_memory": _failure_document(run.oom),
            "failure": _failure_document(run.failure),
        },
    }


def stages_document(runs: Sequence[DryRun]) -> dict[str, Any]:
    """The fullest stage as a document, with all of them under ``stages``."""
    fullest = max(runs, key=lambda run: run.answer.needed[1])
    stages = [
        {
            "stage": stage,
            "rank": run.options.rank,
            "verdict": "fits" if run.fits else "does not fit",
            "needed_bytes": list(run.answer.needed),
            "allocated_peak_bytes": run.facts.allocated_peak,
            "reserved_peak_bytes": run.facts.reserved_peak,
        }
        for stage, run in enumerate(runs)
    ]
    verdict = "fits" if all(run.fits for run in runs) else "does not fit"
    return {**dryrun_document(fullest), "verdict": verdict, "stages": stages}


def _failure_document(error: Failure | None) -> dict[str, Any] | None:
    if error is None:
        return None
    frames = [{"file": f.file, "line": f.line, "name": f.name, "code": f.code} for f in error.frames]
    return {"type": error.type, "text": error.text, "frames": frames}
