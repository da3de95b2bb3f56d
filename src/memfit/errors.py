"""The error tree: everything a user can cause is a ``MemfitError`` with a stable code.

MemfitError                exit code 2 unless stated
├── JobError               one fault of a job: path, value, bound, hint
├── JobErrors              all faults of a job, collected
├── ConfigError            a model configuration that cannot be read
├── UnknownNameError       a model, GPU or key that does not exist, with the nearest names
├── InputFileError         a file that is missing, too large or not what it claims
└── MissingError           something that is needed is not here (exit code 3)
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any


class MemfitError(Exception):
    """Root of all errors that a user can cause.

    Attributes:
        code: stable name of the kind of fault, for scripts.
        message: one sentence without full stop.
        hint: what to do about it, or None.
        exit_code: what the command line exits with.
    """

    code = "memfit"
    exit_code = 2

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def to_dict(self) -> dict[str, Any]:
        """The error as JSON-ready fields: code, message, hint."""
        return {"code": self.code, "message": self.message, "hint": self.hint}


class JobError(MemfitError):
    """One fault of a job: where, what was given, what is allowed."""

    code = "job"

    def __init__(
        self, path: str, message: str, *, value: Any = None, bound: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(f"`{path}`: {message}", hint=hint)
        self.path = path
        self.value = value
        self.bound = bound

    def to_dict(self) -> dict[str, Any]:
        """Adds path, value and bound."""
        return {**super().to_dict(), "path": self.path, "value": self.value, "bound": self.bound}


class JobErrors(MemfitError):  # noqa: N818 - it holds several
    """All faults that were found in one job."""

    code = "job"

    def __init__(self, errors: Sequence[JobError]) -> None:
        self.errors = tuple(errors)
        super().__init__("; ".join(e.message for e in errors), hint=next((e.hint for e in errors if e.hint), None))

    def to_dict(self) -> dict[str, Any]:
        """Adds the single faults."""
        return {**super().to_dict(), "errors": [e.to_dict() for e in self.errors]}


class ConfigError(MemfitError):
    """A model configuration that cannot be read as an architecture."""

    code = "config"


class UnknownNameError(MemfitError):
    """A name that does not exist; the message carries the nearest known names.

    Args:
        what: what it should name.
        name: as it was written.
        known: names to choose from.
        hint: the next step.
        near: the nearest of them, best first, where the caller knows them better than by their letters.
    """

    code = "unknown-name"

    def __init__(
        self, what: str, name: str, known: Iterable[str] = (), *, hint: str | None = None, near: Iterable[str] = ()
    ) -> None:
        self.name = name
        self.nearest = tuple(near) or nearest(name, known)
        guess = f" (did you mean {' or '.join(f'`{n}`' for n in self.nearest)}?)" if self.nearest else ""
        super().__init__(f"unknown {what} `{name}`{guess}", hint=hint)


class InputFileError(MemfitError):
    """A file that is missing, too large, or not what it claims to be."""

    code = "input-file"


class MissingError(MemfitError):
    """Something that the command needs is not on this machine."""

    code = "missing"
    exit_code = 3


def nearest(name: str, known: Iterable[str], limit: int = 3) -> tuple[str, ...]:
    """The known names closest to ``name``, best first."""
    table = {k.lower(): k for k in known}
    return tuple(table[k] for k in difflib.get_close_matches(name.lower(), table, n=limit, cutoff=0.6))
