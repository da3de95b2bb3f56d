"""A mapping -> a Job, with all faults at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from memfit.errors import JobError, JobErrors, nearest
from memfit.job.checks import faults
from memfit.job.coerce import COERCE, BadValueError, show, split_gpu
from memfit.job.fields import BY_NAME, BY_SECTION, FOREIGN, IRRELEVANT, SCHEMA, SECTIONS, Field
from memfit.job.types import Hardware, Job, Lora, Model, Strategy, Task

# The key stands in the row too: the interned string, which keyword calls match fast (see Field.name).
_READERS: dict[str, dict[Any, tuple[str, Field, Callable[[Field, Any], Any]]]] = {
    section: {key: (key, spec, COERCE[spec.type]) for key, spec in table.items() if spec.type != "lora"}
    for section, table in BY_SECTION.items()
}
_MAX_ERRORS = 100


def parse(mapping: Mapping[str, Any]) -> Job:
    """Reads a job document.

    Args:
        mapping: the document as nested tables, as TOML, YAML or JSON gives it. A None value counts as not stated.

    Raises:
        JobErrors: every fault that was found: unknown keys, wrong values, fields that contradict each other.
    """
    errors: list[JobError] = []
    if not isinstance(mapping, Mapping):
        raise JobErrors([JobError("job", f"{show(mapping)} is not a table with [model], [task], ...")])
    sections: dict[str, dict[str, Any]] = {}
    lora: Lora | None = None
    for key, value in mapping.items():
        if key == "schema":
            _check_schema(value, errors)
        elif not isinstance(key, str) or key not in SECTIONS:
            errors.append(_unknown_key(key, ""))
        elif type(value) is dict or isinstance(value, Mapping):
            if key == "task" and value.get("lora") is not None:
                lora = _lora(value["lora"], errors)
            sections[key] = _section(key, value, errors)
        elif value is not None:
            inside = 'name = "llama-3.1-8b"' if key == "model" else f"{', '.join(list(BY_SECTION[key])[:3])}, ..."
            hint = f"write a table [{key}] with {inside}"
            errors.append(JobError(key, f"{show(value)} is not a table", value=value, hint=hint))
    model, task = sections.get("model", {}), sections.get("task", {})
    strategy, hardware = sections.get("strategy", {}), sections.get("hardware", {})
    if lora is not None:
        task["lora"] = lora
    errors += faults({**task, **strategy, **hardware})
    if errors:
        raise JobErrors(errors[:_MAX_ERRORS])
    return Job(model=Model(**model), task=Task(**task), strategy=Strategy(**strategy), hardware=Hardware(**hardware))


def _section(section: str, table: Mapping[Any, Any], errors: list[JobError]) -> dict[str, Any]:
    """The stated fields of one table, by leaf name."""
    readers = _READERS[section]
    values: dict[str, Any] = {}
    if section == "hardware" and table.get("gpu") is not None:
        table = _spread_gpu(table, errors)
    for key, value in table.items():
        reader = readers.get(key)
        if reader is None:
            if key != "lora" or section != "task":
                errors.append(_unknown_key(key, section))
            continue
        if value is None:
            continue
        name, spec, coerce = reader
        try:
            values[name] = coerce(spec, value)
        except BadValueError as bad:
            errors.append(JobError(spec.path, str(bad), value=value, bound=bad.bound, hint=bad.hint))
    return values


def _lora(value: Any, errors: list[JobError]) -> Lora | None:
    spec = BY_SECTION["task.lora"]["rank"]
    try:
        if isinstance(value, str) and value.lstrip().startswith("{"):  # as the flag gives a table
            value = COERCE["mapping"](spec, value)
        if isinstance(value, Mapping):
            return Lora(**_section("task.lora", value, errors))
        return Lora(rank=COERCE["int"](spec, value))
    except BadValueError:
        message, hint = f"{show(value)} is neither a table nor a rank", "write 16, or a table with rank, targets, alpha"
        errors.append(JobError("task.lora", message, value=value, hint=hint))
        return None


def _spread_gpu(table: Mapping[Any, Any], errors: list[JobError]) -> Mapping[Any, Any]:
    """Reads ``gpu = "8xh100"`` as gpu and gpus."""
    count, name = split_gpu(table["gpu"])
    if count is None:
        return table
    stated = table.get("gpus")
    if stated is not None and str(stated).strip() != str(count):
        message = f"{show(table['gpu'])} says {count} GPUs, `hardware.gpus` says {show(stated)}"
        errors.append(JobError("hardware.gpu", message, value=table["gpu"], hint="state the number once"))
    return {**table, "gpu": name, "gpus": count}


def _check_schema(value: Any, errors: list[JobError]) -> None:
    if value is None or (value == SCHEMA and isinstance(value, int) and not isinstance(value, bool)):
        return
    hint = None
    if isinstance(value, int) and not isinstance(value, bool) and value > SCHEMA:
        hint = "this job was written for a newer memfit: update it"
    errors.append(JobError("schema", f"{show(value)} is not a known schema", value=value, bound=str(SCHEMA), hint=hint))


def _unknown_key(key: Any, section: str) -> JobError:
    if not isinstance(key, str):
        return JobError(section or "job", f"{show(key)} is not a key", value=None)
    shown = show(key[:60])[1:-1] or "(empty)"
    path = f"{section}.{shown}" if section else shown
    return JobError(path, "unknown key", value=key[:60], hint=hint_for(key[:60], section))


def hint_for(key: str, section: str) -> str | None:
    """What an unknown key was probably meant to be.

    Args:
        key: the key as given.
        section: the table it stood in, empty for the top level and for flat names.
    """
    name = key.strip().replace("-", "_")
    lower = name.lower()
    spec = BY_NAME.get(name) or BY_NAME.get(lower)
    if spec is not None:
        leaf = spec.path.rpartition(".")[2]
        if spec.section == section:
            return f"did you mean `{leaf}`?"
        return f"`{leaf}` belongs in [{spec.section}]"
    inner = BY_SECTION["task.lora"].get(lower)
    if inner is not None and section != "task.lora":
        return f"`{lower}` belongs in [task.lora]"
    spec = FOREIGN.get(lower)
    if spec is not None:
        return f"memfit calls it `{spec.path.rpartition('.')[2]}` in [{spec.section}]: {spec.doc}"
    if lower in IRRELEVANT:
        return "memory and time do not depend on it: leave it out"
    known = BY_SECTION.get(section) or (*SECTIONS, "schema")
    near = nearest(name, known, limit=1)
    if near:
        return f"did you mean `{near[0]}`?"
    near = nearest(name, BY_NAME, limit=1)
    if near:
        spec = BY_NAME[near[0]]
        return f"did you mean `{spec.path.rpartition('.')[2]}` in [{spec.section}]?"
    near = nearest(name, FOREIGN, limit=1)
    if near:
        return f"did you mean `{FOREIGN[near[0]].path}`?"
    return f"known here: {', '.join(known)}" if section else f"a job has {', '.join(known)}"
