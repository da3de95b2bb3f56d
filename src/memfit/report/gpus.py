"""Accelerators as a table and as data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memfit.hardware import Gpu, price
from memfit.report.json import SCHEMA_VERSION
from memfit.report.page import Cell, Column, Page, Row, clean, paragraph, table
from memfit.report.words import gib


def gpus_document(cards: Sequence[Gpu]) -> dict[str, Any]:
    """Cards with every figure, its source, and the dated price."""
    rows = []
    for gpu in cards:
        found = price(gpu)
        cost = None
        if found is not None:
            cost = {"usd_per_hour": found.usd_per_hour, "provider": found.provider, "date": found.date}
        rows.append({**gpu.to_dict(), "aliases": list(gpu.aliases), "price": cost})
    return {"schema_version": SCHEMA_VERSION, "gpus": rows}


def gpus_text(page: Page, cards: Sequence[Gpu]) -> str:
    """One line a card; with ``page.verbose`` sources and notes below."""
    rows: list[Row] = []
    dates: set[str] = set()
    for gpu in cards:
        found = price(gpu)
        if found is not None:
            dates.add(found.date)
        flops = gpu.flops.get("bf16") or gpu.flops.get("fp16")
        rows.append(
            [
                gpu.name,
                gib(gpu.total_bytes) + (" " if gpu.total_origin == "measured" else "*"),
                f"{gpu.memory_bytes_per_s / 1e9:.0f}",
                "-" if flops is None else f"{flops / 1e12:.0f}",
                "-" if found is None else f"{found.usd_per_hour:.2f}",
                Cell(clean(gpu.title), "dim"),
            ]
        )
        if page.verbose:
            rows += [["", "", "", "", "", Cell(f"{k}: {clean(v)}", "dim")] for k, v in gpu.sources.items()]
            rows += [["", "", "", "", "", Cell(clean(gpu.note), "dim")]] if gpu.note else []
    columns = [
        Column("gpu"),
        Column("GiB ", "right"),
        Column("GB/s", "right"),
        Column("TFLOP/s", "right"),
        Column("$/h", "right"),
        Column("title", flex=True),
    ]
    lines = [*table(page, columns, rows), ""]
    span = " to ".join(dict.fromkeys((min(dates), max(dates)))) if dates else ""
    when = f"; price on demand of one card, lowest of the snapshot ({span})" if dates else ""
    text = f"{len(cards)} cards; GiB as the driver reports it (* not measured); dense 16-bit TFLOP/s{when}"
    return "\n".join(lines + paragraph(page, text)) + "\n"
