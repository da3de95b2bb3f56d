"""Writes docs/accuracy-table.md from truth records: ``python docs/accuracy_page.py FOLDER|FILES... [--out FILE]``.

The figures are those of ``benchmarks/accuracy.py --json``; this only sets them as tables.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tables import code, table

import memfit
from memfit.formula.estimate import versions

DOCS = Path(__file__).resolve().parent
WORST = 10


def percent(share: float | None, *, signed: bool = False) -> str:
    """A share as per cent."""
    return "" if share is None else f"{100 * share:+.1f} %" if signed else f"{100 * share:.1f} %"


def summary_table(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """One row per measured quantity."""
    rows = (
        (name, s["records"], s["groups"], percent(s["median_abs_error"]), percent(s["p90_abs_error"]),
         percent(s["bias"], signed=True), percent(s["under_share"]))
        for name, s in summary.items()
    )  # fmt: skip
    header = ("quantity", "records", "groups", "median error", "90th percentile", "bias", "more than 10 % too low")
    return table(header, rows)


def group_table(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """One row per group and quantity."""
    rows = (
        (name, code(group), g["records"], percent(g["mean_abs_error"]), percent(g["bias"], signed=True))
        for name, s in summary.items()
        for group, g in s["by_group"].items()
    )
    return table(("quantity", "group", "records", "mean error", "bias"), rows)


def verdict_table(sets: Mapping[str, Mapping[str, Any]]) -> str:
    """How often the verdict was right."""
    rows = (
        (name, f["records"], f["ok"], f["oom"], percent(f["precision"]), percent(f["recall"]),
         "" if f["brier"] is None else f"{f['brier']:.3f}")
        for name, f in sets.items()
    )  # fmt: skip
    header = ("jobs", "records", "ran", "out of memory", 'precision of "fits"', "recall", "Brier score")
    return table(header, rows)


def worst_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """The records that the model gets most wrong, with the largest parts of their ledgers."""
    worst = sorted(rows, key=lambda r: -abs(r["error"]))[:WORST]
    shown = (
        (code(r["id"]), r["quantity"], f"{r['measured_gib']:.2f}", f"{r['predicted_gib']:.2f}",
         percent(r["error"], signed=True), _parts(r["components_gib"]))
        for r in worst
    )  # fmt: skip
    return table(("record", "quantity", "measured [GiB]", "predicted [GiB]", "error", "predicted parts [GiB]"), shown)


def _parts(components: Mapping[str, float]) -> str:
    ordered = sorted(components.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {size:.2f}" for name, size in ordered if size >= 0.01)


def page(scores: Mapping[str, Any]) -> str:
    """The whole fragment."""
    rows = [r for r in scores["rows"] if not r.get("apart")]
    known = ", ".join(f"{k} {v}" for k, v in versions().items() if k != "memfit")
    parts = [
        f"memfit {memfit.__version__}; data: {known}.",
        "## By quantity",
        summary_table(scores["summary"]),
        "## Verdicts",
        verdict_table(scores["feasibility"]),
        "## By group",
        group_table(scores["summary"]),
        "## The largest errors",
        worst_table(rows),
    ]
    if scores.get("apart"):
        parts += ["## Looked at, not scored", summary_table(scores["apart"])]
    return "\n\n".join(parts) + "\n"


def main() -> int:
    """Run the benchmark on the records and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("records", type=Path, nargs="+", help="truth records: files, or folders with *.jsonl")
    parser.add_argument("--out", type=Path, default=DOCS / "accuracy-table.md")
    given = parser.parse_args()
    files = [f for r in given.records for f in (sorted(r.glob("*.jsonl")) if r.is_dir() else [r])]
    command = [sys.executable, str(DOCS.parent / "benchmarks" / "accuracy.py"), *map(str, files), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        return done.returncode
    given.out.write_text(page(json.loads(done.stdout)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
