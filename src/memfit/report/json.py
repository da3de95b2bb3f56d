"""Results as JSON: one document on standard output, or one a line. The shape stands in ``schema/estimate.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from memfit.errors import MemfitError
from memfit.job.coerce import show

if TYPE_CHECKING:
    from memfit.formula.estimate import Estimate

SCHEMA_VERSION = 1
_MAX_TEXT = 2000
_MAX_NUMBER = 10**40


def dumps(document: Any, *, line: bool = False) -> str:
    """JSON text that ends in a line break: indented, or on one line.

    Non-ASCII characters are escaped, so that the text is the same under every encoding.
    """
    indent = None if line else 2
    separators = (",", ":") if line else None
    return json.dumps(document, indent=indent, separators=separators, allow_nan=False) + "\n"


def result(estimate: Estimate, job_id: str | None = None, *, full: bool = True) -> dict[str, Any]:
    """The result document of an estimate.

    Args:
        estimate: the result.
        job_id: becomes ``id``.
        full: with assumptions and changes, which take an estimate each; otherwise both are empty lists.
    """
    return estimate.to_dict(job_id, full=full)


def error_document(error: MemfitError) -> dict[str, Any]:
    """The document that stands in place of a result."""
    return {"schema_version": SCHEMA_VERSION, "error": error_fields(error)}


def error_fields(error: MemfitError) -> dict[str, Any]:
    """The error as JSON-ready data, whatever the faulty value was."""
    return {name: _bounded(item) for name, item in error.to_dict().items()}


def _bounded(item: Any) -> Any:
    """A part of an error: short, finite, plain."""
    if isinstance(item, list):
        return [{name: _bounded(v) for name, v in part.items()} for part in item if isinstance(part, dict)]
    if isinstance(item, str):
        return item if len(item) <= _MAX_TEXT else item[:_MAX_TEXT] + "..."
    if item is None or isinstance(item, bool) or (isinstance(item, int | float) and abs(item) < _MAX_NUMBER):
        return item
    return show(item)


@cache
def schema(name: str = "estimate") -> Mapping[str, Any]:
    """The JSON Schema of a document, as shipped with the package."""
    text = files("memfit.report").joinpath("schema", f"{name}.json").read_text("utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded
