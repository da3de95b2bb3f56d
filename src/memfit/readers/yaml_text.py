"""YAML as plain data: no tags, no aliases (so no alias bombs), no duplicate keys, true and false only as booleans.

Values are built from parser events, so depth and count are capped while reading. Plain scalars follow the YAML 1.2
core schema: ``no`` is text, ``1e-5`` is a number and ``1:30`` is not one.
"""

from __future__ import annotations

import math
import re
from typing import Any

from memfit.errors import InputFileError
from memfit.readers.bounded import MAX_DEPTH, MAX_DIGITS, MAX_NODES, check_tree

MAX_YAML_BYTES = 1 << 20

_INT = re.compile(r"[-+]?[0-9]+")
_BASED = re.compile(r"0x[0-9a-fA-F]+|0o[0-7]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_CORE = "tag:yaml.org,2002:"


def resolve_plain(text: str) -> Any:
    """What an unquoted YAML scalar stands for: None, bool, int, float or the text itself.

    Raises:
        ValueError: a number beyond the bounds, nan or infinity.
    """
    if text in _WORDS:
        return _WORDS[text]
    if len(text) > 400 or not (text[0] in "-+." or text[0].isdigit()):
        return text
    if _INT.fullmatch(text) or _BASED.fullmatch(text):
        if len(text) > MAX_DIGITS:
            raise ValueError(f"a number of more than {MAX_DIGITS} digits")
        return int(text, 0) if text[:2] in {"0x", "0o"} else int(text)
    if _FLOAT.fullmatch(text):
        value = float(text)
        if math.isfinite(value):
            return value
        raise ValueError("a number that is too large")
    if _SPECIAL.fullmatch(text):
        raise ValueError("a number that is not finite (nan or infinity)")
    return text


def parse_yaml(text: str, name: str) -> Any:
    """The value of one YAML document; None for an empty one.

    Args:
        text: the document.
        name: what it is called in messages.

    Raises:
        InputFileError: not YAML, more than one document, aliases, tags, duplicate keys, or beyond the bounds.
    """
    import yaml

    if len(text) > MAX_YAML_BYTES:
        raise InputFileError(f"{name} is larger than {MAX_YAML_BYTES >> 10} KiB, the most that is read of YAML")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        value = _build(yaml.parse(text, Loader=loader), name)
    except yaml.MarkedYAMLError as error:
        if "nesting depth" in str(error.problem):  # libyaml's own limit, met while it reads ahead
            raise InputFileError(f"{name} is nested more than {MAX_DEPTH} deep") from None
        mark = error.problem_mark
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise InputFileError(f"{name} is not YAML: {error.problem or 'unreadable'}{where}") from None
    except (yaml.YAMLError, UnicodeError):
        raise InputFileError(f"{name} is not YAML: it has characters that YAML does not allow") from None
    except RecursionError:
        raise InputFileError(f"{name} is nested more than {MAX_DEPTH} deep") from None
    check_tree(value, name)
    return value


class _Level:
    """One open mapping or sequence while building."""

    __slots__ = ("items", "key", "table", "waits")

    def __init__(self, is_table: bool) -> None:
        self.table: dict[str, Any] | None = {} if is_table else None
        self.items: list[Any] = []
        self.key = ""
        self.waits = is_table  # for a key


def _build(events: Any, name: str) -> Any:
    import yaml

    levels: list[_Level] = []
    root: list[Any] = []
    nodes = 0
    for event in events:
        where = f"{name}, line {event.start_mark.line + 1}"
        if isinstance(event, yaml.AliasEvent):
            raise InputFileError(f"{where}: aliases (`*{str(event.anchor)[:40]}`) are not read", hint="write it out")
        if isinstance(event, yaml.DocumentStartEvent) and root:
            raise InputFileError(f"{where}: a second document begins; one file holds one job")
        if isinstance(event, yaml.NodeEvent):
            nodes += 1
            tag = getattr(event, "tag", None)
            if tag and not (tag.startswith(_CORE) and tag[len(_CORE) :] in {"str", "map", "seq"}):
                raise InputFileError(f"{where}: tags ({tag[:60]!a}) are not read", hint="write plain values")
            if nodes > MAX_NODES:
                raise InputFileError(f"{name} holds more than {MAX_NODES} values")
        if isinstance(event, yaml.ScalarEvent):
            _put(levels, root, _scalar(event, where), where)
        elif isinstance(event, yaml.CollectionStartEvent):
            if len(levels) >= MAX_DEPTH:
                raise InputFileError(f"{name} is nested more than {MAX_DEPTH} deep")
            if levels and levels[-1].waits:
                raise InputFileError(f"{where}: a key must be text")
            levels.append(_Level(isinstance(event, yaml.MappingStartEvent)))
        elif isinstance(event, yaml.CollectionEndEvent):
            level = levels.pop()
            _put(levels, root, level.items if level.table is None else level.table, where)
    return root[0] if root else None


def _scalar(event: Any, where: str) -> Any:
    # A plain scalar has style None from the Python parser and "" from libyaml; quoted and block ones name theirs.
    if not event.implicit[0] or event.style:
        return event.value
    try:
        return resolve_plain(event.value)
    except ValueError as error:
        raise InputFileError(f"{where}: {error}") from None


def _put(levels: list[_Level], root: list[Any], value: Any, where: str) -> None:
    if not levels:
        root.append(value)
        return
    level = levels[-1]
    if level.table is None:
        level.items.append(value)
    elif level.waits:
        if not isinstance(value, str):
            raise InputFileError(f"{where}: a key must be text; put it in quotes")
        if value in level.table:
            raise InputFileError(f"{where}: the key {value[:60]!a} stands twice in one mapping")
        level.key = value
        level.waits = False
    else:
        level.table[level.key] = value
        level.waits = True
