"""JSON as the standard has it: no NaN, no duplicate keys, bounded numbers and depth."""

from __future__ import annotations

import json
import math
from typing import Any

from memfit.errors import InputFileError
from memfit.readers.bounded import MAX_DEPTH, MAX_DIGITS, check_tree


class _RefusedError(ValueError):
    """A rule of this reader, not of the JSON parser, was broken."""


def _constant(text: str) -> float:
    raise _RefusedError(f"{text} is not JSON")


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise _RefusedError(f"a number of more than {MAX_DIGITS} digits")
    return int(text)


def _real(text: str) -> float:
    value = float(text[:400])
    if len(text) > 400 or not math.isfinite(value):
        raise _RefusedError("a number that is too large or too long")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _RefusedError(f"the key {key[:60]!a} stands twice in one object")
            seen.add(key)
    return table


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_float=_real, parse_constant=_constant)


def parse_json(text: str, name: str) -> Any:
    """The value of one JSON text.

    Args:
        text: the document.
        name: what it is called in messages.

    Raises:
        InputFileError: not JSON, a duplicate key, NaN or Infinity, a number or a depth beyond the bounds.
    """
    try:
        value = _DECODER.decode(text)
    except _RefusedError as error:
        raise InputFileError(f"{name}: {error}") from None
    except json.JSONDecodeError as error:
        raise InputFileError(f"{name} is not JSON: {error.msg} (line {error.lineno}, column {error.colno})") from None
    except RecursionError:
        raise InputFileError(f"{name} is nested more than {MAX_DEPTH} deep") from None
    # The hooks above bound the numbers; depth and lone surrogates need the walk, which few texts do.
    if text.count("{") + text.count("[") > MAX_DEPTH or "\\u" in text or not text.isascii():
        check_tree(value, name)
    return value
