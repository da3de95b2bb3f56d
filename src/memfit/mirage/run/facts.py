"""What the hooks said about a script (``PID.run.json``), read as what a stranger wrote: bounded and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memfit.errors import InputFileError, MemfitError
from memfit.readers.bounded import read_text
from memfit.readers.json_text import parse_json

SCHEMA = 1
_LIMIT = 4 << 20
_MOST_FILES = 256
_MOST_TEXTS = 200
_LARGEST = 1 << 50
_WHOLE = ("total_bytes", "allocated_peak", "reserved_peak", "private_bytes", "num_alloc_retries", "num_oom", "pid",
          "steps", "device")  # fmt: skip
_TEXTS = ("ending", "torch", "python", "device_name")


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """One level of a traceback."""

    file: str
    line: int
    name: str
    code: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """The exception that ended a script.

    Attributes:
        type, text: of the exception.
        out_of_memory: whether it was PyTorch's out-of-memory error.
        frames: the traceback, outermost first.
    """

    type: str
    text: str
    out_of_memory: bool
    frames: tuple[Frame, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What happened in a process that used the imaginary GPU; bytes.

    Attributes:
        pid: the process.
        ending: ``steps`` (ended by memfit), ``exit``, ``error``.
        steps: optimizer steps that were finished.
        failure: the exception that ended it, or None.
        num_oom: how often the allocator ran out, caught or not.
        torch, python: versions.
        device, device_name, total_bytes: the GPU that was filled most, as the script saw it.
        allocated_peak, reserved_peak, num_alloc_retries: of PyTorch's own statistics.
        others: requested peak of further GPUs that the process used, by index.
        complete: whether the history holds all that happened.
        private_bytes: requested from private pools (CUDA graphs, MemPool).
        notes, warnings: what was adapted, and what is not faithful.
    """

    pid: int
    ending: str
    steps: int
    failure: Failure | None
    num_oom: int
    torch: str
    python: str
    device: int
    device_name: str
    total_bytes: int
    allocated_peak: int
    reserved_peak: int
    num_alloc_retries: int
    others: Mapping[int, int]
    complete: bool
    private_bytes: int
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def read_facts(folder: Path) -> list[Facts]:
    """The facts of every process that left some, the one with most steps and the highest peak first.

    Raises:
        MissingError: a process says that its torch cannot be used.
        InputFileError: a file is damaged.
    """
    found = []
    for path in sorted(folder.glob("*.run.json"))[:_MOST_FILES]:
        facts = _facts(parse_json(read_text(path, limit=_LIMIT), path.name), path.name)
        if facts is not None:
            found.append(facts)
    return sorted(found, key=lambda f: (-f.steps, -f.allocated_peak, f.pid))


def _facts(document: Any, name: str) -> Facts | None:
    try:
        if not isinstance(document, dict) or document.get("schema") != SCHEMA:
            raise ValueError(f"not schema {SCHEMA}")
        if "refused" in document:
            raise _unusable(_text(document, "refused"))
        whole = {key: _whole(document, key) for key in _WHOLE}
        texts = {key: _text(document, key) for key in _TEXTS}
        lists: dict[str, Any] = {key: tuple(_items(document, key, str)) for key in ("notes", "warnings")}
        fields: dict[str, Any] = {**whole, **texts, **lists}
        return Facts(
            **fields,
            failure=_failure(document["error"]),
            others={_whole(o, "device"): _whole(o, "requested_peak") for o in _items(document, "others", dict)},
            complete=bool(document["complete"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputFileError(f"`{name}` is not what a dry run writes: {error}") from error


def _unusable(text: str) -> MemfitError:
    from memfit.errors import MissingError

    return MissingError(text[:500], hint="`memfit dryrun setup` makes an environment that can be used")


def _failure(document: Any) -> Failure | None:
    if document is None:
        return None
    frames = [
        Frame(file=_text(f, "file"), line=_whole(f, "line"), name=_text(f, "name"), code=_text(f, "code"))
        for f in _items(document, "frames", dict)
    ]
    return Failure(
        type=_text(document, "type"),
        text=_text(document, "text"),
        out_of_memory=bool(document["out_of_memory"]),
        frames=tuple(frames),
    )


def _whole(document: Mapping[str, Any], key: str) -> int:
    value = document[key]
    if type(value) is not int or not 0 <= value <= _LARGEST:
        raise ValueError(f"`{key}` is {str(value)[:40]!r}")
    return value


def _text(document: Mapping[str, Any], key: str) -> str:
    value = document[key]
    if not isinstance(value, str):
        raise TypeError(f"`{key}` is no text")
    return value[:8000]


def _items(document: Mapping[str, Any], key: str, kind: type) -> list[Any]:
    values = document[key]
    if not isinstance(values, list) or not all(isinstance(v, kind) for v in values):
        raise TypeError(f"`{key}` is no list of {kind.__name__}")
    return values[:_MOST_TEXTS]
