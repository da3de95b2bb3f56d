"""A price list of the user's own: CSV with a header, or TOML, YAML or JSON with a list of ``prices``."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Mapping
from datetime import date
from pathlib import PurePath
from typing import Any

from memfit.errors import InputFileError, MemfitError, nearest
from memfit.hardware.names import lookup_gpu
from memfit.hardware.prices import Price
from memfit.readers import FORMATS, read_text, read_tree, show_path

COLUMNS = ("provider", "gpu", "usd_per_hour", "spot", "date", "machine", "machine_gpus")
_NEEDED = COLUMNS[:3]
_MAX_BYTES = 1 << 20
_MAX_ROWS = 10_000
_MAX_USD = 1e6
_MAX_MACHINE = 1024
_DATE = re.compile(r"(\d{4})(?:-(\d\d)(?:-(\d\d))?)?")


def read_prices(path: str | os.PathLike[str]) -> tuple[Price, ...]:
    """The prices of a list.

    Args:
        path: a ``.csv``, ``.toml``, ``.yaml``, ``.yml`` or ``.json`` file. Each row has ``provider``, ``gpu`` (any name
            of a card), ``usd_per_hour`` (per GPU, on demand), and may have ``spot`` (per GPU, interruptible), ``date``
            (``2026``, ``2026-11`` or ``2026-11-28``), ``machine`` (its name) and ``machine_gpus`` (GPUs that are rented
            together).

    Raises:
        InputFileError: the file is missing, too large, not what it claims to be, or a row is not a price.
    """
    name = show_path(path)
    ending = PurePath(os.fsdecode(path)).suffix.lower()
    if ending != ".csv" and ending not in FORMATS:
        raise InputFileError(f"{name}: not a known kind of price list", hint=f"one of .csv, {', '.join(FORMATS)}")
    rows = _table(path, name) if ending == ".csv" else _tree(path, name)
    if not rows:
        raise InputFileError(f"{name} holds no price", hint=f"rows of {', '.join(COLUMNS)}")
    if len(rows) > _MAX_ROWS:
        raise InputFileError(f"{name} holds more than {_MAX_ROWS} prices")
    return tuple(_price(row, f"{name}, price {i}", name) for i, row in enumerate(rows, start=1))


def _table(path: str | os.PathLike[str], name: str) -> list[Any]:
    reader = csv.reader(io.StringIO(read_text(path, limit=_MAX_BYTES), newline=""), strict=True)
    try:
        lines = [[cell.strip() for cell in line] for line in reader if any(cell.strip() for cell in line)]
    except csv.Error as error:
        raise InputFileError(f"{name} is not CSV: {error} (line {reader.line_num})") from None
    if not lines:
        return []
    head = [cell.lower() for cell in lines[0]]
    if len(set(head)) < len(head):
        raise InputFileError(f"{name} names a column twice")
    for i, line in enumerate(lines[1:], start=1):
        if len(line) != len(head):
            raise InputFileError(f"{name}, price {i}: {len(line)} cells below a header of {len(head)}")
    return [{key: cell for key, cell in zip(head, line, strict=True) if cell} for line in lines[1:]]


def _tree(path: str | os.PathLike[str], name: str) -> list[Any]:
    content = read_tree(path, limit=_MAX_BYTES)
    if isinstance(content, Mapping):
        if set(content) != {"prices"}:
            raise InputFileError(
                f"{name} is not a price list", hint="a list named `prices`, in TOML [[prices]], and no more"
            )
        content = content["prices"]
    if not isinstance(content, list):
        raise InputFileError(f"{name} is not a price list: `prices` is not a list")
    return content


def _price(row: Any, where: str, name: str) -> Price:
    if not isinstance(row, Mapping):
        raise InputFileError(f"{where}: not a table of {', '.join(COLUMNS)}")
    for key in row:
        if key not in COLUMNS:
            guess = nearest(str(key), COLUMNS, 1)
            hint = f"did you mean `{guess[0]}`?" if guess else f"known are {', '.join(COLUMNS)}"
            raise InputFileError(f"{where}: unknown column {str(key)[:40]!a}", hint=hint)
    for key in _NEEDED:
        if row.get(key) in (None, ""):
            raise InputFileError(f"{where}: `{key}` is missing")
    try:
        gpu, count = lookup_gpu(_text(row, "gpu", where))
    except MemfitError as error:
        raise InputFileError(f"{where}: {error.message}", hint=error.hint) from None
    if count is not None:
        raise InputFileError(
            f"{where}: `gpu` names {count} cards", hint="prices are per GPU; machine_gpus states the count"
        )
    spot = row.get("spot")
    return Price(
        gpu=gpu.name,
        provider=_text(row, "provider", where),
        machine=_text(row, "machine", where) if row.get("machine") else "",
        machine_gpus=_count(row.get("machine_gpus"), where),
        usd_per_hour=_dollars(row, "usd_per_hour", where),
        spot_usd_per_hour=None if spot is None else _dollars(row, "spot", where),
        source=name,
        date=_date(row.get("date"), where),
    )


def _text(row: Mapping[str, Any], key: str, where: str) -> str:
    value = row[key]
    text = value.strip() if isinstance(value, str) else ""
    if not text or not text.isprintable() or len(text) > 60 or "," in text:
        raise InputFileError(f"{where}: `{key}` must be a name without commas, at most 60 characters")
    return text


def _dollars(row: Mapping[str, Any], key: str, where: str) -> float:
    value = row[key]
    try:
        number = float(value.removeprefix("$") if isinstance(value, str) else value)
    except (TypeError, ValueError, OverflowError):
        number = -1.0
    if isinstance(value, bool) or not 0 <= number <= _MAX_USD:
        raise InputFileError(f"{where}: `{key}` must be dollars per GPU-hour, got {str(value)[:40]!a}")
    return number


def _count(value: Any, where: str) -> int | None:
    if value is None:
        return None
    number = int(value) if isinstance(value, str) and re.fullmatch(r"[0-9]{1,6}", value) else value
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= _MAX_MACHINE:
        raise InputFileError(
            f"{where}: `machine_gpus` must be a number of GPUs, 1 to {_MAX_MACHINE}, got {str(value)[:40]!a}"
        )
    return number


def _date(value: Any, where: str) -> str:
    if value is None:
        return ""
    text = str(value)
    match = _DATE.fullmatch(text)
    try:
        assert match is not None
        date(int(match[1]), int(match[2] or 1), int(match[3] or 1))
    except (AssertionError, ValueError):
        raise InputFileError(f"{where}: `date` must be like 2026-11-28, 2026-11 or 2026, got {text[:40]!a}") from None
    return text
