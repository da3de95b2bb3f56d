"""A job from a file, a mapping, flags or Python keyword arguments."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import combinations
from typing import Any

from memfit.errors import InputFileError, JobError, JobErrors
from memfit.job.coerce import show, split_gpu
from memfit.job.completing import complete
from memfit.job.fields import BY_NAME, BY_PATH, SECTIONS
from memfit.job.parsing import hint_for, parse
from memfit.job.types import Job
from memfit.readers import FORMATS, read_tree, show_path

MAX_JOB_BYTES = 4 << 20  # a job may carry a whole config.json

# When an override contradicts the arithmetic of a document, what follows from it is derived anew.
_FOLLOWS = {
    "micro_batch": ("grad_accum",),
    "grad_accum": ("global_batch",),
    "global_batch": ("grad_accum",),
    "dp": ("grad_accum", "dp_shard"),
    "gpus": ("dp", "dp_shard", "grad_accum"),
    "tp": ("dp", "dp_shard", "grad_accum"),
    "pp": ("dp", "dp_shard", "grad_accum", "pp_layers"),
    "pp_layers": ("pp", "dp", "dp_shard", "grad_accum"),
    "cp": ("dp", "dp_shard", "grad_accum"),
    "prompt": ("context",),
    "output": ("context",),
    "context": ("output", "prompt"),
}


def load(
    source: str | os.PathLike[str] | Mapping[str, Any] | None = None, overrides: Mapping[str, Any] | None = None
) -> Job:
    """Reads a job and applies overrides.

    Args:
        source: a ``.toml``, ``.yaml``, ``.yml`` or ``.json`` file, a mapping, or None for an empty job.
        overrides: dotted paths ("strategy.zero") or plain field names ("seq_len", "lora_rank") -> values, or text as
            typed on a command line ("8k", "8xh100"). A None value counts as not given. An override wins over the
            document, and what the document states in contradiction to it but follows from it (``grad_accum`` of
            ``micro_batch``, ``dp`` of ``gpus`` and ``tp``) is left to be derived anew.

    Raises:
        InputFileError: the file is missing, too large or not what it claims to be.
        JobErrors: every fault of the job.
    """
    document = _document(source)
    if not overrides:
        return parse(document)
    errors: list[JobError] = []
    changes = _by_path(overrides, errors)
    merged = _merge(document, changes)
    if not errors:
        return _parse_relaxed(merged, changes)
    try:
        parse(merged)
    except JobErrors as more:
        errors += more.errors
    raise JobErrors(errors)


def from_kwargs(**kwargs: Any) -> Job:
    """A job from Python keyword arguments: flat field names, e.g. ``model="llama-3.1-8b", gpu="8xh100", zero=3``.

    ``model`` is a name or the content of a config.json; ``config`` and ``extra`` are mappings; ``lora`` is a rank or a
    table; ``lora_rank`` and its like set one field of it. A section name with a mapping gives the whole section, e.g.
    ``strategy={"zero": 3}``. None counts as not given.

    Raises:
        JobErrors: every fault of the job.
    """
    errors: list[JobError] = []
    document: dict[str, Any] = {}
    flat: dict[str, Any] = {}
    for name, value in kwargs.items():
        if name == "schema":
            document[name] = value
        elif name == "model" and isinstance(value, Mapping) and not set(value) <= {"name", "config", "extra"}:
            flat["config"] = value
        elif name in SECTIONS and isinstance(value, Mapping):
            document[name] = value
        elif value is not None:
            flat[name] = value
    merged = _merge(document, _by_path(flat, errors))
    if not errors:
        return parse(merged)
    try:
        parse(merged)
    except JobErrors as more:
        errors += more.errors
    raise JobErrors(errors)


def _document(source: Any) -> Mapping[str, Any]:
    if source is None:
        return {}
    if isinstance(source, Mapping):
        return source
    if not isinstance(source, str | os.PathLike):
        raise JobErrors([JobError("job", f"{show(source)} is neither a path nor a table")])
    try:
        document = read_tree(source, limit=MAX_JOB_BYTES)
    except InputFileError as error:
        if isinstance(source, str) and not source.lower().endswith(tuple(FORMATS)):
            error.hint = "a job is a .toml, .yaml or .json file; a model is named by model=..."
        raise
    if document is None:
        return {}
    if not isinstance(document, Mapping):
        raise InputFileError(f"{show_path(source)} does not hold a job: {show(document)}, not a table")
    if "model_type" in document and not any(section in document for section in SECTIONS):
        raise InputFileError(
            f"{show_path(source)} is a model configuration, not a job", hint="give it as the model instead"
        )
    return document


def _by_path(overrides: Mapping[str, Any], errors: list[JobError]) -> dict[str, Any]:
    """Overrides by dotted path; unknown names become errors."""
    changes: dict[str, Any] = {}
    for key, value in overrides.items():
        if value is None:
            continue
        name = key.strip().lstrip("-").replace("-", "_") if isinstance(key, str) else ""
        spec = BY_PATH.get(name) or BY_NAME.get(name) or (BY_NAME["name"] if name == "model" else None)
        if spec is None:
            shown = show(key[:60])[1:-1] if isinstance(key, str) else show(key)
            hint = hint_for(name.rpartition(".")[2][:60], "") if name else None
            errors.append(JobError(shown, "unknown field", value=shown, hint=hint))
        else:
            changes[spec.path] = value
    return changes


def _merge(document: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the document with the changes in place; only the touched tables are copied."""
    merged: dict[str, Any] = dict(document)
    if "hardware.gpu" in changes and "hardware.gpus" not in changes:
        count, name = split_gpu(changes["hardware.gpu"])
        if count is not None:
            changes = {**changes, "hardware.gpu": name, "hardware.gpus": count}
    elif "hardware.gpus" in changes and "hardware.gpu" not in changes and isinstance(document.get("hardware"), Mapping):
        name = split_gpu(document["hardware"].get("gpu"))[1]
        changes = {**changes, **({"hardware.gpu": name} if name is not None else {})}
    for path in sorted(changes, key=len):  # task.lora before task.lora.rank
        *tables, leaf = path.split(".")
        table = merged
        for key in tables:
            inner = table.get(key)
            if inner is not None and not isinstance(inner, Mapping):
                if key != "lora":
                    break  # not a table: parsing will say so
                inner = {"rank": inner}  # the short form
            table[key] = dict(inner or {})
            table = table[key]
        else:
            table[leaf] = changes[path]
    return merged


def _parse_relaxed(merged: dict[str, Any], changes: Mapping[str, Any]) -> Job:
    """Parses; where only arithmetic fails, the fewest fields that follow from the overrides are dropped."""
    stands, one, first = _attempt(merged)
    if stands and one is not None:
        return one
    names = [BY_PATH[path].name for path in changes]
    if split_gpu(changes.get("hardware.gpu"))[0] is not None:
        names.append("gpus")
    follows = dict.fromkeys(follow for changed in names for follow in _FOLLOWS.get(changed, ()) if follow not in names)
    paths = [BY_NAME[name].path for name in follows]
    paths = [path for path in paths if _holds(merged, path)]
    for size in range(1, min(len(paths), 3) + 1):  # the fewest that make the job stand
        for dropped in combinations(paths, size):
            stands, relaxed, _ = _attempt(_without(merged, dropped))
            if stands and relaxed is not None:
                return relaxed
    if one is not None:  # only completing finds the fault, and will name it
        return one
    raise first or JobErrors([])


def _attempt(merged: Mapping[str, Any]) -> tuple[bool, Job | None, JobErrors | None]:
    """Whether the document stands once completed, the job if it could be read, and the faults."""
    one = None
    try:
        one = parse(merged)
        complete(one)
    except JobErrors as error:
        return False, one, error
    return True, one, None


def _holds(document: Mapping[str, Any], path: str) -> bool:
    section, _, leaf = path.partition(".")
    table = document.get(section)
    return isinstance(table, Mapping) and table.get(leaf) is not None


def _without(document: Mapping[str, Any], paths: tuple[str, ...]) -> dict[str, Any]:
    result = dict(document)
    for path in paths:
        section, _, leaf = path.partition(".")
        result[section] = {key: value for key, value in result[section].items() if key != leaf}
    return result
