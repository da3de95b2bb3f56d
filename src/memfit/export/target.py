"""What an export target is: which tool at which version, which levers it has words for, how it writes and reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from memfit.errors import JobError
from memfit.export.levers import Rule
from memfit.job import Job, Strategy

if TYPE_CHECKING:
    from memfit.export.plan import Plan
    from memfit.export.reading import Found, Source


@dataclass(frozen=True, kw_only=True, slots=True)
class File:
    """One file of an export: its name inside the folder (may have one folder of its own) and its text."""

    name: str
    text: str
    executable: bool = False


def _no_defaults(_: Job) -> Mapping[str, Any]:
    return {}


def _nothing(_: Any) -> Iterable[JobError]:
    return ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """One tool that a job can be written for.

    Attributes:
        name: what the command line calls it.
        title: what the tool calls itself.
        version: the version of the tool that the files are written for.
        about: what is written, in one line.
        checked: what the tests check it with.
        framework: the framework profile, and words of its version, that the tool's memory follows.
        levers: what it does with each lever, by dotted path.
        variant: the profile where it depends on the job: on what shards.
        command: what one machine starts, in the folder of the files; launchers need it.
        defaults: values that the tool's own way of working gives to fields that nobody stated, by dotted path.
        check: faults that depend on several levers.
        write: the files.
        read: a configuration of the tool -> job fields; None when nothing is read back.
        marks: keys by which a configuration of the tool is recognised: all of one group.
        never: keys that a configuration of the tool does not have.
        launcher: this target starts another target's program.
        note: what a user must know before choosing it.
        kinds: kinds of models that it takes (``Architecture.kind``).
    """

    name: str
    title: str
    version: str
    about: str
    checked: str
    framework: tuple[str, str | None]
    levers: Mapping[str, Rule]
    write: Callable[[Plan], list[File]]
    variant: Callable[[Strategy], tuple[str, str | None]] | None = None
    command: Callable[[Plan], str] | None = None
    defaults: Callable[[Job], Mapping[str, Any]] = _no_defaults
    check: Callable[[Plan], Iterable[JobError]] = _nothing
    read: Callable[[Source], Found] | None = None
    marks: tuple[frozenset[str], ...] = ()
    never: frozenset[str] = frozenset()
    launcher: bool = False
    note: str = ""
    kinds: tuple[str, ...] = ("decoder", "vision")

    @property
    def tool(self) -> str:
        """Title and version."""
        return f"{self.title} {self.version}"
