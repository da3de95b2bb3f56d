"""A job as nested tables and as TOML, YAML or JSON text that reads back to the same job."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from memfit.errors import MemfitError
from memfit.job.fields import BY_SECTION, SECTIONS
from memfit.job.types import Job, Lora
from memfit.readers import resolve_plain

FORMATS = ("toml", "json", "yaml")


def to_dict(job: Job) -> dict[str, Any]:
    """The job as nested plain tables; what is None is left out, tuples become lists."""
    tables: dict[str, Any] = {"schema": job.schema}
    for section in SECTIONS:
        table = _table(getattr(job, section), BY_SECTION[section])
        if table:
            tables[section] = table
    return tables


def dumps(job: Job, fmt: str = "toml") -> str:
    """The job as text of the format "toml", "json" or "yaml"; ``load`` of it gives an equal job.

    TOML has no null: a ``config`` or ``extra`` that holds one is written there as JSON text, which ``load`` reads.

    Raises:
        MemfitError: another format.
    """
    tables = to_dict(job)
    if fmt == "json":
        return json.dumps(tables, indent=2, allow_nan=False) + "\n"
    if fmt == "toml":
        import tomli_w

        for key in ("config", "extra"):
            if key in tables.get("model", {}) and _holds_null(tables["model"][key]):
                tables["model"][key] = json.dumps(tables["model"][key], allow_nan=False)
        return tomli_w.dumps(tables)
    if fmt == "yaml":
        return _yaml(tables)
    raise MemfitError(f"a job cannot be written as {fmt!a}", hint=f"one of {', '.join(FORMATS)}")


def _table(record: Any, known: Mapping[str, Any]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for name in known:
        value = getattr(record, name)
        if value is None:
            continue
        if isinstance(value, Lora):
            value = _table(value, BY_SECTION["task.lora"])
        table[name] = _plain(value)
    return table


def _plain(value: Any) -> Any:
    """Tuples as lists and mappings as dicts, all the way down."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _holds_null(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_null, value.values()))
    return any(map(_holds_null, value)) if isinstance(value, list) else value is None


def _yaml(tables: dict[str, Any]) -> str:
    import yaml

    class Dumper(yaml.SafeDumper):
        """Writes every list and table out, and quotes text that the reader would take for something else."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    def text(dumper: Any, value: str) -> Any:
        try:
            plain = resolve_plain(value) == value
        except ValueError:
            plain = False
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if plain else '"')

    Dumper.add_representer(str, text)
    return yaml.dump(tables, Dumper=Dumper, sort_keys=False, width=4096)
