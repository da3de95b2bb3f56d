"""What the field table says, for people and editors: rows for ``memfit job`` and a JSON Schema."""

from __future__ import annotations

from typing import Any, NamedTuple

from memfit.job.coerce import bounds_text
from memfit.job.fields import BY_SECTION, FIELDS, SCHEMA, SECTIONS, Field, default_of
from memfit.job.types import Completed


class Row(NamedTuple):
    """One field of a completed job: where, what, whence, and what it means."""

    path: str
    value: Any
    origin: str
    doc: str


def describe(completed: Completed) -> list[Row]:
    """The fields of a completed job in document order.

    Fields of the other task kind, and fields that stay empty, are left out unless they were stated.
    """
    kind = completed.job.task.kind
    rows = []
    for spec in FIELDS:
        origin = completed.origins[spec.path]
        if origin != "stated" and spec.kind not in (None, kind):
            continue
        value: Any = completed.job
        for part in spec.path.split("."):
            value = getattr(value, part) if value is not None else None
        if value is not None and spec.type != "lora":
            rows.append(Row(spec.path, value, origin, spec.doc))
    return rows


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a job document, for editors.

    It is narrower than what is read: it does not list shorthands such as "8xh100" and other spellings of choices.
    """
    sections = {section: _object(section) for section in SECTIONS}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "memfit job",
        "description": "What model, what task, with which strategy, on which hardware",
        "type": "object",
        "additionalProperties": False,
        "properties": {"schema": {"const": SCHEMA}, **sections},
    }


def _object(section: str) -> dict[str, Any]:
    properties = {leaf: _property(spec) for leaf, spec in BY_SECTION[section].items()}
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _property(spec: Field) -> dict[str, Any]:
    text = f"{spec.doc} ({spec.unit})" if spec.unit else spec.doc
    result: dict[str, Any] = {"description": text, **_shape(spec)}
    default = default_of(spec, spec.kind or "train")
    if default is not None:
        result["default"] = list(default) if isinstance(default, tuple) else default
    return result


def _shape(spec: Field) -> dict[str, Any]:
    low = {"exclusiveMinimum" if spec.above else "minimum": spec.low, "maximum": spec.high}
    words = {"enum": list(spec.choices)}
    names = {"type": "array", "items": {"type": "string"}}
    match spec.type:
        case "int":
            number = {"type": "integer", **low}
            short = {"type": "string", "pattern": "^[0-9]+[kKmM]?$"}
            return {"anyOf": [number, short]} if spec.unit == "tokens" else number
        case "number":
            return {"type": "number", **low}
        case "bool":
            return {"type": "boolean"}
        case "choice":
            return words
        case "choices":
            return {"type": "array", "items": words, "uniqueItems": True}
        case "names":
            return names
        case "counts":
            return {"type": "array", "items": {"type": "integer", **low}, "minItems": 1}
        case "targets":
            return {"anyOf": [{"const": "all-linear"}, {**names, "minItems": 1}]}
        case "trainable":
            fraction = {"type": "number", "exclusiveMinimum": 0, "maximum": 1}
            return {"anyOf": [{"type": "integer", **low}, fraction, {**names, "minItems": 1}]}
        case "checkpointing":
            return {"anyOf": [words, {"type": "integer", **low}]}
        case "weights":
            bits = {"bpw": {"type": "number", "description": f"bits per weight, {bounds_text(spec)}", **low}}
            table = {"type": "object", "additionalProperties": False, "required": ["bpw"], "properties": bits}
            return {"anyOf": [words, table]}
        case "mapping":
            return {"type": ["object", "string"]}
        case "lora":
            return _object("task.lora")
        case _:
            return {"type": "string", "minLength": 1, "maxLength": int(spec.high)}
