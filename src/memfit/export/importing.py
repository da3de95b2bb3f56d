"""Other tools' configuration files back into a job: which tool wrote it, what it says, what was not understood."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from memfit.errors import InputFileError, MemfitError
from memfit.export import NAMES, Target, target
from memfit.export.modules import Module, read_module
from memfit.export.reading import Found, Source
from memfit.job import BY_PATH, Job, load
from memfit.job.fields import SECTIONS
from memfit.readers import FORMATS, read_text, read_tree, show_path

MAX_BYTES = 1 << 20
READABLE = ("accelerate", "transformers", "trl", "deepspeed", "axolotl", "llama-factory", "torchtitan")
"""Targets whose configurations are read."""
_READ = f"read are {', '.join(READABLE)}"
_ORDER = ("axolotl", "llama-factory", "accelerate", "torchtitan", "trl", "transformers", "deepspeed")
"""The order in which files are recognised: the more particular first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """A job read from other tools' files.

    Attributes:
        job: what was understood.
        targets: which tool each file is of.
        warnings: what was not understood.
    """

    job: Job
    targets: tuple[Target, ...]
    warnings: tuple[str, ...]


def import_files(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    of: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Imported:
    """Reads one configuration, or several that belong together.

    Args:
        paths: a file, or several; the first wins where two speak of the same field.
        of: name of the tool; found by the keys of each file unless stated.
        overrides: job fields as flags give them; they win over the files.

    Raises:
        InputFileError: a file is missing, too large, not what it claims to be, or of no known tool.
        JobErrors: what the files say contradicts itself.
    """
    of = of if of is None else {name.replace("-", ""): name for name in READABLE}.get(_letters(of), of)
    if of is not None and of not in READABLE:
        known = ", ".join(READABLE)
        message = f"configurations of {of} are not read" if of in NAMES else f"unknown tool `{of[:60]}`"
        raise MemfitError(message, hint=f"one of {known}")
    whole = Found()
    tools = []
    for path in [paths] if isinstance(paths, str | os.PathLike) else paths:
        tree = _tree(path)
        tool = target(of) if of is not None else recognise(tree, show_path(path))
        assert tool.read is not None
        if not isinstance(tree, Mapping) and not (isinstance(tree, Module) and tool.name == "torchtitan"):
            raise InputFileError(f"{show_path(path)} does not hold a configuration: it is not a table")
        whole.merge(tool.read(Source(name=show_path(path), tree=tree, beside=partial(_beside, Path(path).parent))))
        tools.append(tool)
    _settle(whole)
    return Imported(job=load(_document(whole), overrides), targets=tuple(tools), warnings=tuple(whole.warnings))


def recognise(tree: Any, name: str) -> Target:
    """The tool that a configuration is of, by its keys.

    Raises:
        InputFileError: no tool is known by these keys.
    """
    if isinstance(tree, Module):
        return target("torchtitan")
    if isinstance(tree, Mapping):
        keys = frozenset(tree)
        if any(isinstance(value, Mapping) and "_component_" in value for value in tree.values()):
            raise InputFileError(f"{name} is a configuration of torchtune, which is not read", hint=_READ)
        for which in _ORDER:
            tool = target(which)
            if not tool.never & keys and any(mark <= keys for mark in tool.marks):
                return tool
        if keys & frozenset(SECTIONS) and not keys - {*SECTIONS, "schema"}:
            raise InputFileError(f"{name} is a job already", hint="give it to estimate or export as it is")
    hint = f"--from says which: {', '.join(READABLE)}"
    raise InputFileError(f"{name} is of no tool that is known by its keys", hint=hint)


def _letters(name: str) -> str:
    """A tool's name without what people write differently: ``LLaMA_Factory`` is ``llamafactory``."""
    return name.strip().lower().replace("-", "").replace("_", "")


def _tree(path: str | os.PathLike[str]) -> Any:
    """The content of a file: YAML, JSON or TOML as data, Python as the calls that its functions return."""
    if Path(path).suffix.lower() != ".py":
        known = (*FORMATS, ".py")
        if Path(path).suffix.lower() not in known:
            raise InputFileError(f"{show_path(path)}: not a known kind of file", hint=f"one of {', '.join(known)}")
        return read_tree(path, limit=MAX_BYTES)
    text = read_text(path, limit=MAX_BYTES)
    return read_module(text, show_path(path))


def _beside(folder: Path, name: str) -> Any:
    """A file that another names: beside it, or below the working folder; never above the folder, never absolute."""
    path = Path(name)
    if path.is_absolute() or ".." in path.parts or path.suffix.lower() not in (".json", ".yaml", ".yml"):
        return None
    for candidate in (folder / path, path):
        try:
            if candidate.is_file():
                return read_tree(candidate, limit=MAX_BYTES)
        except OSError:
            return None
    return None


def _settle(found: Found) -> None:
    """Files that state all batch sizes say how many data-parallel GPUs there are, where nothing else does."""
    total, micro, accum = found.get("global_batch"), found.get("micro_batch"), found.get("grad_accum")
    if total and micro and accum and total % (micro * accum) == 0 and not (found.get("dp") or found.get("gpus")):
        found.set("dp", total // (micro * accum))


def _document(found: Found) -> dict[str, Any]:
    document: dict[str, Any] = {"schema": 1}
    for path, value in found.values.items():
        assert path in BY_PATH, path
        *tables, leaf = path.split(".")
        table = document
        for key in tables:
            table = table.setdefault(key, {})
        table[leaf] = value
    document.setdefault("task", {})["kind"] = "train"
    return document
