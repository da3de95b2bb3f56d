"""Text of configuration files: headers, settings with the reason beside each, in YAML, JSON, Python and shell."""

from __future__ import annotations

import json
import re
import shlex
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from memfit._version import __version__
from memfit.export.plan import Plan
from memfit.units import GIB

WIDTH = 118
_PLAIN = re.compile(r"[A-Za-z_./][A-Za-z0-9_./ +-]*")
_NOT_TEXT = frozenset({"true", "false", "yes", "no", "on", "off", "null", "y", "n", "none", ".nan", ".inf"})


class Setting(NamedTuple):
    """One key of a configuration: a value, a list, or further settings; and why it is so."""

    key: str
    value: Any
    why: str = ""


def header(plan: Plan, what: str, run: Sequence[str], *, reasons: bool = True) -> list[str]:
    """The lines of comment that every file begins with, without comment signs.

    Args:
        plan: what is written.
        what: what the file is, e.g. ``configuration of axolotl 0.19``.
        run: how it is used, one line each.
        reasons: list what was chosen and why; one file of an export does.
    """
    answer = plan.estimate
    lines = [f"{what}, written by memfit {__version__} for {plan.target.tool}."]
    if plan.target.note:
        lines += textwrap.wrap(plan.target.note[:1].upper() + plan.target.note[1:] + ".", WIDTH - 4)
    lines += [f"Run: {run[0]}", *(f"     {line}" for line in run[1:])] if run else []
    need = answer.bands["need"]
    size = f"needs {need.mid / GIB:.2f} GiB a GPU ({need.low / GIB:.2f} to {need.high / GIB:.2f})"
    if answer.capacity_bytes is not None:
        size += f" of {answer.capacity_bytes / GIB:.2f}: {answer.verdict}"
    card = plan.job.hardware.gpu
    gpus = f" on {plan.gpus} x {card}" if card else f" on {plan.gpus} GPU{'s' if plan.gpus > 1 else ''}"
    lines += textwrap.wrap(f"{plan.model}{gpus}, estimated: {size}.", WIDTH - 4)
    if not reasons:
        return lines
    rows = plan.reasons()
    wide = max(len(name) for name, _, _ in rows), max(len(value) for _, value, _ in rows if len(value) < 30)
    lines += ["", "What was chosen, and why:"]
    lines += [f"  {name:<{wide[0]}}  {value:<{wide[1]}}  {why}" for name, value, why in rows]
    return lines


def commented(lines: Iterable[str], sign: str = "#") -> str:
    """Lines as comments."""
    return "".join(f"{sign} {line}".rstrip() + "\n" for line in lines)


def number(value: float) -> str:
    """A number that YAML 1.1 and 1.2, TOML and JSON all read as one: no exponent."""
    if isinstance(value, int):
        return str(value)
    text = f"{value:.12f}".rstrip("0")
    return text + "0" if text.endswith(".") else text


def scalar(value: Any) -> str:
    """A YAML scalar, or a list of scalars in one line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return number(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(scalar(item) for item in value)}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {scalar(item)}" for key, item in value.items()) + "}"
    text = str(value)
    if _PLAIN.fullmatch(text) and text.lower() not in _NOT_TEXT and text == text.strip() and not text.startswith("."):
        return text
    return json.dumps(text, ensure_ascii=not text.isprintable())


def yaml(settings: Iterable[Setting], indent: int = 0) -> str:
    """Settings as a YAML mapping, the reason as a comment at the end of the line, or above it when it is long."""
    pad = " " * indent
    lines: list[str] = []
    for key, value, why in settings:
        if not key:  # a title between settings
            lines += ["", f"{pad}# {why}"] if lines else [f"{pad}# {why}"]
            continue
        nested = isinstance(value, list) and bool(value) and isinstance(value[0], Setting)
        listed = isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)
        body = f"{pad}{key}:" if nested or listed else f"{pad}{key}: {scalar(value)}"
        if why and len(body) + len(why) + 4 <= WIDTH:
            lines.append(f"{body}  # {why}")
        else:
            lines += [f"{pad}# {part}" for part in textwrap.wrap(why, WIDTH - indent - 2)] if why else []
            lines.append(body)
        if nested:
            lines.append(yaml(value, indent + 2).rstrip("\n"))
        elif listed:
            for item in value:
                entries = [f"{k}: {scalar(v)}" for k, v in item.items()]
                lines += [f"{pad}  {'- ' if at == 0 else '  '}{entry}" for at, entry in enumerate(entries)]
    return "\n".join(lines) + "\n"


def tree(settings: Iterable[Setting]) -> dict[str, Any]:
    """Settings as plain tables."""
    return {
        key: tree(value) if isinstance(value, list) and value and isinstance(value[0], Setting) else value
        for key, value, _ in settings
        if key
    }


def json_text(value: Any) -> str:
    """JSON, which has no comments."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def python(value: Any) -> str:
    """A Python literal with double quotes."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=True)
    if isinstance(value, tuple | list):
        items = ", ".join(python(item) for item in value)
        return f"[{items}]" if isinstance(value, list) else f"({items}{',' if len(value) == 1 else ''})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{python(key)}: {python(item)}" for key, item in value.items()) + "}"
    return repr(value)


def assignments(settings: Iterable[Setting]) -> str:
    """Settings as Python assignments with the reasons beside."""
    lines: list[str] = []
    for key, value, why in settings:
        body = f"{key} = {python(value)}"
        if why and len(body) + len(why) + 4 > WIDTH:
            lines += [f"# {part}" for part in textwrap.wrap(why, WIDTH - 2)]
            why = ""
        lines.append(f"{body}  # {why}" if why else body)
    return "\n".join(lines) + "\n"


def shell(word: Any) -> str:
    """One word for a shell."""
    return shlex.quote(str(word))
