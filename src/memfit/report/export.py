"""How exports are shown: the files themselves, or what was written where; the list of targets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memfit.export import Export, targets
from memfit.export.importing import READABLE
from memfit.report.page import Page, clean
from memfit.report.verdict import headline

SCHEMA_VERSION = 1


def export_text(page: Page, answer: Export, paths: Sequence[Path], *, quiet: bool) -> str:
    """The files one after the other, or where they were written with the command that starts them."""
    if not paths:
        if quiet:
            return "".join(f"{file.name}\n" for file in answer.files)
        several = len(answer.files) > 1
        parts = [
            f"{page.paint(f'==> {file.name} <==', 'bold')}\n{file.text}" if several else file.text
            for file in answer.files
        ]
        return "\n".join(parts)
    lines = [f"wrote {clean(str(path))}" for path in paths]
    if quiet:
        return lines[0] + "\n"
    lines += ["", f"{answer.target.tool}: {headline(answer.plan.estimate)}"]
    return "\n".join(lines) + "\n"


def export_document(answer: Export, paths: Sequence[Path]) -> dict[str, Any]:
    """The export as JSON: target, levers with their reasons, files with their text or where they were written."""
    plan = answer.plan
    return {
        "schema_version": SCHEMA_VERSION,
        "target": answer.target.name,
        "tool": answer.target.title,
        "version": answer.target.version,
        "program": plan.program.target.name if plan.program else None,
        "levers": [{"name": name, "value": value, "why": why} for name, value, why in plan.reasons()],
        "files": [
            {
                "name": file.name,
                "path": str(paths[at]) if paths else None,
                "text": None if paths else file.text,
                "executable": file.executable,
            }
            for at, file in enumerate(answer.files)
        ],
        "warnings": list(answer.warnings),
    }


def targets_text(page: Page) -> str:
    """The targets, one a line."""
    rows = [(target.name, target.tool, target.about) for target in targets()]
    wide = max(len(row[0]) for row in rows), max(len(row[1]) for row in rows)
    del page
    return "".join(f"{name:<{wide[0]}}  {tool:<{wide[1]}}  {about}\n" for name, tool, about in rows)


def targets_document() -> dict[str, Any]:
    """The targets as JSON."""
    return {
        "schema_version": SCHEMA_VERSION,
        "targets": [
            {
                "name": target.name,
                "tool": target.title,
                "version": target.version,
                "about": target.about,
                "checked": target.checked,
                "imported": target.name in READABLE,
            }
            for target in targets()
        ],
    }
