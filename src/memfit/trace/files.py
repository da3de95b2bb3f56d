"""Traces as files: gzip-compressed JSON in columns, ``*.trace.json.gz``.

The document has ``schema``, ``engine``, ``steps``, ``seconds``, ``num_ops``, ``settings``, ``warnings``, ``notes`` and
two tables in columns: ``events`` (id, bytes, stream, phase, step) and ``blocks`` (the fields of ``Block``). Texts that
repeat (operations, modules, phases, sources) are numbers into ``words``.
"""

from __future__ import annotations

import gzip
import json
import zlib
from dataclasses import fields
from pathlib import Path
from typing import Any

from memfit.errors import InputFileError
from memfit.ledger import COMPONENTS
from memfit.trace.result import Block, RawEvent, Trace

SCHEMA = 1
MAX_BYTES = 1 << 29
"""Largest document that is read, unpacked: 405B on 512 ranks takes about a tenth of it."""
MAX_STEPS = 10_000
MAX_BLOCK_BYTES = 1 << 40
"""Largest allocation in a trace, several times the memory of any GPU: more is a damaged file."""
_TEXTS = ("op", "module", "phase", "dtype", "component", "source")
_NUMBERS = ("id", "bytes", "step", "stream")
_FLAGS = ("recompute", "hidden")
_COLUMNS = tuple(f.name for f in fields(Block))


def save(trace: Trace, path: str | Path) -> None:
    """Write a trace."""
    words: dict[str, int] = {}

    def number(text: str) -> int:
        return words.setdefault(text, len(words))

    blocks: dict[str, list[Any]] = {}
    for name in _COLUMNS:
        values = [getattr(block, name) for block in trace.blocks.values()]
        blocks[name] = [number(v) for v in values] if name in _TEXTS else values
    events = {
        "id": [e.id for e in trace.events],
        "bytes": [e.bytes for e in trace.events],
        "stream": [e.stream for e in trace.events],
        "phase": [number(e.phase) for e in trace.events],
        "step": [e.step for e in trace.events],
    }
    document = {
        "schema": SCHEMA,
        "engine": trace.engine,
        "steps": trace.steps,
        "seconds": trace.seconds,
        "num_ops": trace.num_ops,
        "settings": trace.settings,
        "warnings": trace.warnings,
        "notes": trace.notes,
        "words": list(words),
        "events": events,
        "blocks": blocks,
    }
    with gzip.open(path, "wt", encoding="utf-8", compresslevel=6) as file:
        json.dump(document, file, separators=(",", ":"))


def load(path: str | Path) -> Trace:
    """Read a trace; nothing in the file is run and its size is bounded.

    Raises:
        InputFileError: the file is missing, too large, or not a trace.
    """
    try:
        with gzip.open(path, "rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise InputFileError(f"cannot read the trace `{path}`: {reason}") from error
    if len(raw) > MAX_BYTES:
        raise InputFileError(f"the trace `{path}` is larger than {MAX_BYTES} bytes")
    try:
        return _trace(json.loads(raw))
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise InputFileError(f"`{path}` is not a trace of schema {SCHEMA}: {error}") from error


def _trace(document: dict[str, Any]) -> Trace:
    if document["schema"] != SCHEMA:
        raise ValueError(f"schema {document['schema']!r}")
    words = [_typed(word, str) for word in document["words"]]
    table, blocks = document["blocks"], {}
    for name in (*_NUMBERS, *_TEXTS):
        _column(table[name], int)
    for name in _FLAGS:
        _column(table[name], bool)
    for name in _TEXTS:
        table[name] = [words[i] for i in table[name] if i >= 0 or _raise(i)]
    if unknown := set(table["component"]) - set(COMPONENTS):
        raise ValueError(f"component {min(unknown)!r}")
    table["shape"] = [tuple(_column(shape, int)) for shape in table["shape"]]
    for row in zip(*(table[name] for name in _COLUMNS), strict=True):
        block = Block(**dict(zip(_COLUMNS, row, strict=True)))
        blocks[block.id] = block
    columns = document["events"]
    phases = [words[i] for i in _column(columns["phase"], int)]
    numbers = [_column(columns[name], int) for name in ("id", "bytes", "stream")]
    events = tuple(
        RawEvent(i, size, stream, phase, step)
        for i, size, stream, phase, step in zip(*numbers, phases, _column(columns["step"], int), strict=True)
    )
    if any(event.id not in blocks for event in events):
        raise ValueError("an event names a block that is not there")
    if (largest := max((abs(event.bytes) for event in events), default=0)) > MAX_BLOCK_BYTES:
        raise ValueError(f"a block of {largest} bytes")
    json.dumps((document["settings"], document["seconds"]), allow_nan=False)  # refuses what is no JSON number
    if _typed(document["steps"], int) > MAX_STEPS:
        raise ValueError(f"{document['steps']} steps")
    return Trace(
        events=events,
        blocks=blocks,
        engine=_typed(document["engine"], str),
        steps=document["steps"],
        seconds=float(document["seconds"]),
        num_ops=_typed(document["num_ops"], int),
        settings=_typed(document["settings"], dict),
        warnings=tuple(_column(document["warnings"], str)),
        notes=tuple(_column(document["notes"], str)),
    )


def _typed(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{type(value).__name__} where {kind.__name__} was expected")
    return value


def _column(values: Any, kind: type) -> list[Any]:
    return [_typed(value, kind) for value in _typed(values, list)]


def _raise(number: int) -> bool:
    raise IndexError(f"word {number}")
