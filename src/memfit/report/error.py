"""Errors as text: one sentence each, then what to do about it."""

from __future__ import annotations

from collections.abc import Mapping

from memfit.errors import JobError, JobErrors, MemfitError
from memfit.report.page import Page, clean, wrap


def error_text(page: Page, error: MemfitError, flags: Mapping[str, str] | None = None) -> str:
    """``error:`` and ``hint:`` lines.

    Args:
        page: what it is written on.
        error: the fault, or all faults of a job.
        flags: dotted field path -> the flag that was typed for it; the flag is named then, as the user knows it.
    """
    faults: tuple[MemfitError, ...] = error.errors if isinstance(error, JobErrors) and error.errors else (error,)
    lines: list[str] = []
    for fault in faults:
        text = clean(fault.message)
        if isinstance(fault, JobError) and flags and fault.path in flags:
            text = text.replace(f"`{fault.path}`", f"`{flags[fault.path]}`", 1)
        first, *rest = wrap(f"error: {text}", page.width, "  ")
        lines += [first.replace("error:", page.paint("error:", "bad"), 1), *rest]
        if fault.hint:
            lines += wrap(f"  hint: {clean(fault.hint)}", page.width, "    ")
    return "\n".join(lines) + "\n"
