"""Values as people write them -> values of the job, one function per field type.

Text is read in every place, as flags give it: "8k" tokens, "79.2GiB", "yes", "q_proj,v_proj", "8xh100".
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import PurePath
from typing import Any

from memfit.errors import InputFileError, nearest
from memfit.job.fields import FIELDS, Field
from memfit.readers import check_tree, parse_json
from memfit.units import GIB, parse_bytes, parse_count

MAX_NAMES = 512
MAX_COUNTS = 4096
_GPUS_OF = (  # none of them reads a number out of a card's own name: "4070 Ti Super 16GB", "RTX 4090"
    re.compile(r"\s*(?P<count>[0-9]{1,9})\s*[xX×*]\s*(?P<name>(?![0-9]{1,3}\s*$)\S.*)", re.DOTALL),  # "8xh100"
    re.compile(r"\s*(?P<count>[0-9]{1,3})\s+(?P<name>\S.*[0-9].*)", re.DOTALL),  # "8 h100"
    re.compile(r"(?P<name>.*[0-9])\s*[xX×*:]\s*(?P<count>[0-9]{1,9})\s*", re.DOTALL),  # "h100x8", "h100:8"
    re.compile(r"(?P<name>.*\S)(?:\s+[xX]|\s*[×*:])\s*(?P<count>[0-9]{1,9})\s*", re.DOTALL),  # "h100-nvl x 8"
)
_RUN = re.compile(r"\s*(-?[0-9]{1,9})\s*[xX×*]\s*([0-9]{1,5})\s*")  # "8x14": fourteen times 8
_BPW = re.compile(r"(?:bpw\s*=\s*)?([0-9]{1,3}(?:\.[0-9]{1,9})?)\s*(?:bpw)?")
_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})


class BadValueError(ValueError):
    """A value that a field cannot take; caught where the path is known."""

    def __init__(self, message: str, *, bound: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.bound = bound
        self.hint = hint


def show(value: Any) -> str:
    """A value in a message: short, escaped, never a whole container."""
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:57] + "...").encode("ascii", "backslashreplace").decode()
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and value.bit_length() > 200:
        return "a number of more than 60 digits"
    if isinstance(value, int | float):
        return format(value)
    if isinstance(value, Mapping):
        return "a table"
    return "a list" if isinstance(value, list | tuple | set | frozenset) else f"a value of type {type(value).__name__}"


def normal(text: str) -> str:
    """The spelling that choices are compared in: lower case, hyphens."""
    return text.strip().lower().replace("_", "-")


_WORDS: dict[str, dict[str, str]] = {
    f.path: {normal(k): v for k, v in f.aliases.items()} | {normal(c): c for c in f.choices} | {c: c for c in f.choices}
    for f in FIELDS
}


def bounds_text(spec: Field) -> str:
    """The bounds of a number in words."""
    if spec.above:
        return f"above {spec.low:g}, at most {spec.high:.15g}"
    return f"{spec.low:g} to {spec.high:.15g}"


def _in_bounds(spec: Field, value: Any, given: Any) -> None:
    if not (spec.low <= value <= spec.high) or (spec.above and value == spec.low):  # false for nan too
        raise BadValueError(f"{show(given)} is out of bounds ({bounds_text(spec)})", bound=bounds_text(spec))


def _int(spec: Field, value: Any) -> int:
    given = value
    if type(value) is not int:
        value = _other_int(spec, value)
    if value < spec.low or value > spec.high:
        _in_bounds(spec, value, given)
    return value  # type: ignore[no-any-return]


def _other_int(spec: Field, value: Any) -> int:
    what = f"a whole number of {spec.unit}" if spec.unit else "a whole number"
    if isinstance(value, str):
        try:
            return parse_count(value) if spec.unit == "tokens" else int(_plain(value))
        except ValueError:
            hint = "write for example 8192 or 8k" if spec.unit == "tokens" else None
            raise BadValueError(f"{show(value)} is not {what}", bound=bounds_text(spec), hint=hint) from None
    if isinstance(value, float) and value.is_integer():  # JSON writers that know only floats
        return int(value)
    if not isinstance(value, bool | float):
        try:
            return operator.index(value)  # numpy integers
        except TypeError:
            pass
    raise BadValueError(f"{show(value)} is not {what}", bound=bounds_text(spec))


def _plain(text: str) -> str:
    text = text.strip()
    if len(text) > 40 or not text.isascii():
        raise ValueError(text[:40])
    return text


def _number(spec: Field, value: Any) -> float:
    given = value
    if isinstance(value, str):
        try:
            value = _gib(value) if spec.unit == "GiB" else float(_plain(value))
        except ValueError:
            hint = "write for example 79.2 or 79.2GiB" if spec.unit == "GiB" else None
            raise BadValueError(f"{show(given)} is not a number", bound=bounds_text(spec), hint=hint) from None
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise BadValueError(f"{show(value)} is not a number", bound=bounds_text(spec))
    _in_bounds(spec, value, given)
    return float(value)


def _gib(text: str) -> float:
    text = _plain(text)
    if text.lower().endswith("gib"):  # not by way of whole bytes: 79.2GiB is 79.2
        return float(text[:-3])
    return parse_bytes(text) / GIB if text[-1:].isalpha() else float(text)


def _bool(_: Field, value: Any) -> bool:
    if value is True or value is False:
        return value
    if isinstance(value, str):
        word = value.strip().lower()
        if word in _TRUE or word in _FALSE:
            return word in _TRUE
    raise BadValueError(f"{show(value)} is not true or false", bound="true, false")


def _choice(spec: Field, value: Any) -> str:
    words = _WORDS[spec.path]
    if isinstance(value, str):
        found = words.get(value) or words.get(normal(value))
        if found:
            return found
        near = nearest(normal(value[:60]), words, limit=1)
        hint = f"did you mean `{words[near[0]]}`?" if near else None
    else:
        hint = None
    allowed = ", ".join(spec.choices)
    raise BadValueError(f"{show(value)} is not one of {allowed}", bound=allowed, hint=hint)


def _choices(spec: Field, value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [] if normal(value) in {"", "none"} else value.split(",")
    if not isinstance(value, list | tuple) or len(value) > MAX_NAMES:
        raise BadValueError(f"{show(value)} is not a list of words", bound=", ".join(spec.choices))
    chosen = {_choice(spec, item) for item in value}
    return tuple(c for c in spec.choices if c in chosen)


def _text(spec: Field, value: Any) -> str:
    if not isinstance(value, str):
        if not isinstance(value, PurePath):
            raise BadValueError(f"{show(value)} is not text")
        value = str(value)
    text: str = value.strip()
    if not text:
        raise BadValueError("is empty")
    if len(text) > spec.high or not text.isprintable():  # unprintable includes lone surrogates and line breaks
        raise BadValueError(f"{show(value)} is not printable text of at most {spec.high:g} characters")
    return text


def _counts(spec: Field, value: Any) -> tuple[int, ...]:
    if isinstance(value, str):
        value = [item for word in value.split(",") for item in _run(word)]
    if not isinstance(value, list | tuple):
        raise BadValueError(f"{show(value)} is not a list of numbers of {spec.unit}", hint="write for example 7,8,8,7")
    if not 0 < len(value) <= MAX_COUNTS:
        raise BadValueError(f"has {len(value)} numbers", bound=f"1 to {MAX_COUNTS}")
    return tuple(_count(spec, rank, item) for rank, item in enumerate(value))


def _count(spec: Field, rank: int, value: Any) -> int:
    try:
        return _int(spec, value)
    except BadValueError as bad:
        raise BadValueError(f"rank {rank}: {bad}", bound=bad.bound, hint=bad.hint) from None


def _run(word: str) -> list[str]:
    """A number, or "8x14" written out."""
    match = _RUN.fullmatch(word)
    return [match[1]] * min(int(match[2]), MAX_COUNTS + 1) if match else [word]


_NAME = Field(path="name", type="text", high=256, doc="")


def _names(_: Field, value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [item for item in value.split(",") if item.strip()]
    if not isinstance(value, list | tuple):
        raise BadValueError(f"{show(value)} is not a list of module names")
    if len(value) > MAX_NAMES:
        raise BadValueError(f"has {len(value)} names", bound=f"at most {MAX_NAMES}")
    return tuple(_text(_NAME, item) for item in value)


def _targets(spec: Field, value: Any) -> str | tuple[str, ...]:
    if isinstance(value, str) and normal(value) in {"all-linear", "all"}:
        return "all-linear"
    names = _names(spec, value)
    if not names:
        raise BadValueError("names no module", hint='write "all-linear" or module names')
    return "all-linear" if names == ("all-linear",) else names


def _trainable(spec: Field, value: Any) -> int | float | tuple[str, ...]:
    if isinstance(value, str):
        with suppress(ValueError):  # module names
            value = float(_plain(value)) if "." in value or "e" in value.lower() else int(_plain(value))
    if isinstance(value, str | list | tuple):
        names = _names(spec, value)
        if not names:
            raise BadValueError("names no module")
        return names
    if isinstance(value, float):
        if not 0 < value <= 1:
            raise BadValueError(f"{show(value)} is not a fraction of the parameters", bound="above 0, at most 1")
        return value
    return _int(spec, value)


def _checkpointing(spec: Field, value: Any) -> str | int:
    if isinstance(value, bool):
        return "full" if value else "none"
    if isinstance(value, str) and not value.strip().isdigit():
        return _choice(spec, value)
    every = _int(spec, value)
    return every if every > 1 else "full"


def _weights(spec: Field, value: Any) -> str | dict[str, float]:
    if isinstance(value, str):
        match = _BPW.fullmatch(value.strip().lower()) if "bpw" in value.lower() else None
        if match is None:
            return _choice(spec, value)
        value = {"bpw": float(match.group(1))}
    if isinstance(value, Mapping):
        if len(value) != 1 or "bpw" not in value:
            raise BadValueError("a table here has the one key `bpw`, bits per weight", hint="write { bpw = 4.9 }")
        return {"bpw": _number(spec, value["bpw"])}
    return _choice(spec, value)


_A_PATH = "a folder or file with a config.json is named by --model, in a job by model.name"


def _mapping(_: Field, value: Any) -> Mapping[str, Any]:
    try:
        if isinstance(value, str):  # as flags give it, and as TOML must write what holds a null
            if not value.lstrip().startswith("{"):
                raise BadValueError(f"{show(value)} is not a table", hint=_A_PATH)
            value = parse_json(value[: 16 << 20], "the text")
        if not isinstance(value, Mapping):
            raise BadValueError(f"{show(value)} is not a table")
        check_tree(value if isinstance(value, dict) else dict(value), "the table")
    except InputFileError as error:
        raise BadValueError(error.message) from None
    return value


def _gpu(spec: Field, value: Any) -> str:
    return _text(spec, value)


def split_gpu(value: Any) -> tuple[int | None, Any]:
    """The shorthands "8xh100", "8 h100", "h100x8" and "h100:8" as (8, "h100"); any other value as (None, value)."""
    if isinstance(value, str) and len(value) < 300:
        for pattern in _GPUS_OF:
            if match := pattern.fullmatch(value):
                return int(match["count"]), match["name"]
    return None, value


COERCE: dict[str, Callable[[Field, Any], Any]] = {
    "int": _int,
    "number": _number,
    "bool": _bool,
    "choice": _choice,
    "choices": _choices,
    "text": _text,
    "names": _names,
    "targets": _targets,
    "trainable": _trainable,
    "checkpointing": _checkpointing,
    "weights": _weights,
    "mapping": _mapping,
    "gpu": _gpu,
    "counts": _counts,
}
