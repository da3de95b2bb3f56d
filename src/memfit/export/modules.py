"""Python modules as data: calls with keyword arguments become tables. The module is parsed, never run."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memfit.errors import InputFileError

MAX_BYTES = 1 << 20
MAX_DEPTH = 40
CALL = "()"
"""Key of a call's name in its table."""


@dataclass(frozen=True, slots=True)
class Module:
    """A module as data: what its functions return, and its imported names with their dotted origin."""

    functions: Mapping[str, Mapping[str, Any]]
    imports: Mapping[str, str]


def read_module(text: str, name: str) -> Module:
    """A module as data.

    Raises:
        InputFileError: not Python, too large or nested too deep.
    """
    return Module(parse_module(text, name), imports(text, name))


def parse_module(text: str, name: str) -> dict[str, dict[str, Any]]:
    """What the functions of a module return: function name -> the table of the call that it returns.

    A call ``Trainer.Config(training=TrainingConfig(seq_len=8))`` becomes ``{"()": "Trainer.Config", "training": {"()":
    "TrainingConfig", "seq_len": 8}}``, positional arguments under ``0``, ``1``. Names that the function assigns are
    put in, so are later assignments to attributes of what it returns. Anything else becomes None.

    Raises:
        InputFileError: not Python, too large or nested too deep.
    """
    if len(text) > MAX_BYTES:
        raise InputFileError(f"{name} is larger than {MAX_BYTES >> 10} KiB, the most that is read of Python")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputFileError(f"{name} is not Python: {str(error)[:120] or type(error).__name__}") from None
    found = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            table = _returned(node)
            if table is not None:
                found[node.name] = table
    return found


def imports(text: str, name: str) -> dict[str, str]:
    """Imported names of a module with their dotted origin.

    Raises:
        InputFileError: not Python.
    """
    parse_module(text, name)
    origins: dict[str, str] = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module:
            origins |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return origins


def _returned(function: ast.FunctionDef) -> dict[str, Any] | None:
    names: dict[str, Any] = {}
    for node in function.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            _assign(node.targets[0], _value(node.value, names, 0), names)
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            _assign(node.target, _value(node.value, names, 0), names)
        elif isinstance(node, ast.Return) and node.value is not None:
            value = _value(node.value, names, 0)
            return value if isinstance(value, dict) and CALL in value else None
    return None


def _assign(target: ast.expr, value: Any, names: dict[str, Any]) -> None:
    path = _dotted(target)
    if path is None:
        return
    first, *rest = path.split(".")
    if not rest:
        names[first] = value
        return
    table = names.get(first)
    for key in rest[:-1]:
        table = table.setdefault(key, {}) if isinstance(table, dict) else None
    if isinstance(table, dict):
        table[rest[-1]] = value


def _dotted(node: ast.expr) -> str | None:
    parts: list[str] = []
    while isinstance(node, ast.Attribute) and len(parts) < MAX_DEPTH:
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else None


def _value(node: ast.expr, names: dict[str, Any], depth: int) -> Any:
    if depth > MAX_DEPTH:
        return None
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str | int | float | bool | None) else None
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _value(node.operand, names, depth + 1)
        return -value if isinstance(value, int | float) else None
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(item, names, depth + 1) for item in node.elts]
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Call):
        table: dict[str, Any] = {CALL: _dotted(node.func) or "?"}
        table |= {str(at): _value(item, names, depth + 1) for at, item in enumerate(node.args)}
        table |= {k.arg: _value(k.value, names, depth + 1) for k in node.keywords if k.arg is not None}
        return table
    return None
