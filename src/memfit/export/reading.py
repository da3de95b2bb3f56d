"""Reading other tools' configurations: keys are taken one by one, and what nobody took is reported.

No code of the file runs: YAML, JSON and TOML come from the bounded readers, Python modules are only parsed.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

from memfit.job import BY_NAME


@cache
def _ignored(tool: str) -> frozenset[str]:
    return frozenset(_data()[tool]["keys"])


@cache
def _data() -> dict[str, Any]:
    text = resources.files("memfit.export").joinpath("data", "ignored.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


@dataclass(kw_only=True)
class Found:
    """What a configuration says, in the words of the job.

    Attributes:
        values: dotted path -> value.
        warnings: what was not understood, one sentence each.
    """

    values: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def set(self, name: str, value: Any) -> None:
        """States a field by its name; None states nothing."""
        if value is not None:
            self.values[BY_NAME[name].path] = value

    def get(self, name: str) -> Any:
        """What is stated of a field so far."""
        return self.values.get(BY_NAME[name].path)

    def warn(self, text: str) -> None:
        """Says once what was not understood."""
        if text not in self.warnings:
            self.warnings.append(text)

    def merge(self, other: Found) -> None:
        """Adds what another file says; the first file wins where both speak, and a difference is reported."""
        for path, value in other.values.items():
            if path in self.values and self.values[path] != value:
                self.warn(f"two files differ on `{path}`: {self.values[path]} is kept, {value} is not")
            self.values.setdefault(path, value)
        self.warnings += [text for text in other.warnings if text not in self.warnings]


@dataclass(frozen=True, kw_only=True)
class Source:
    """One configuration to read.

    Attributes:
        name: how it is called in messages.
        tree: the parsed content.
        beside: the parsed content of another file that this one names by a relative path; None when there is none.
    """

    name: str
    tree: Any
    beside: Callable[[str], Any] = field(default=lambda _: None)


class Keys:
    """The keys of one table, each taken once; ``rest`` reports those that nobody took."""

    def __init__(self, tree: Mapping[str, Any], found: Found, where: str = "") -> None:
        self._tree = dict(tree)
        self._found = found
        self._where = where

    def __contains__(self, key: str) -> bool:
        """Whether the key is stated."""
        return self._tree.get(key) is not None

    def take(self, *keys: str) -> Any:
        """The value of the first of these keys that is stated; the others are taken too."""
        values = [self._tree.pop(key, None) for key in keys]
        return next((value for value in values if value is not None), None)

    def peek(self, key: str) -> Any:
        """The value of a key, which is not taken."""
        return self._tree.get(key)

    def number(self, *keys: str) -> int | float | None:
        """A number; other values are reported."""
        value = self.take(*keys)
        if value is None or value == "auto":
            return None
        if isinstance(value, str):  # "5e-5" and "16" stand as text in many files
            with suppress(ValueError):
                value = float(value) if not value.strip().isdigit() else int(value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.odd(keys[0], value)
            return None
        return value

    def whole(self, *keys: str) -> int | None:
        """A whole number above zero; other values are reported, -1 and ``auto`` state nothing."""
        value = self.number(*keys)
        if value is None or value == -1:
            return None
        if value != int(value) or value < 1:
            self.odd(keys[0], value)
            return None
        return int(value)

    def flag(self, *keys: str) -> bool | None:
        """True or false, also as text; other values are reported."""
        value = self.take(*keys)
        if isinstance(value, str):
            word = value.strip().lower()
            value = (
                True if word in {"true", "yes", "1"} else False if word in {"false", "no", "0", "none", ""} else word
            )
        if value is None or isinstance(value, bool):
            return value
        if value in (0, 1):
            return bool(value)
        if value == "auto":
            return None
        self.odd(keys[0], value)
        return None

    def text(self, *keys: str) -> str | None:
        """A text; other values are reported, and those that another file or the environment fills in."""
        value = self.take(*keys)
        if value is None or (isinstance(value, str) and "${" not in value):
            return value or None
        self.odd(keys[0], value)
        return None

    def names(self, *keys: str) -> tuple[str, ...] | None:
        """A list of texts, or one text; other values are reported."""
        value = self.take(*keys)
        if isinstance(value, str):
            return (value,) if value else None
        if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
            return tuple(value) or None
        if value is not None:
            self.odd(keys[0], value)
        return None

    def word(self, table: Mapping[str, Any], *keys: str, what: str = "") -> Any:
        """What a word stands for in ``table`` (keys lower case); a word that is not there is reported."""
        value = self.take(*keys)
        if value is None:
            return None
        key = str(value).strip().lower()
        if key not in table:
            self.odd(keys[0], value, what)
            return None
        return table[key]

    def table(self, *keys: str) -> Keys:
        """A nested table, empty when it is not stated."""
        value = self.take(*keys)
        where = f"{self._where}{keys[0]}."
        if value is not None and not isinstance(value, Mapping):
            self.odd(keys[0], value)
            value = None
        return Keys(value or {}, self._found, where)

    def odd(self, key: str, value: Any, what: str = "") -> None:
        """Reports a value that has no counterpart in a job."""
        shown = "a table" if isinstance(value, Mapping) else str(value)[:60]
        self._found.warn(f"`{self._where}{key}` = {shown} was not understood{': ' + what if what else ''}")

    def rest(self, tool: str = "", also: Iterable[str] = ()) -> None:
        """Reports every key that was not taken, but for settings that memory does not depend on.

        Args:
            tool: whose settings, a table of ``data/ignored.toml``, beside those of all trainers.
            also: further keys.
        """
        known = _ignored("trainer") | (_ignored(tool) if tool else frozenset()) | frozenset(also)
        for key, value in self._tree.items():
            if key not in known and value not in (None, False, "", [], {}):
                self.odd(key, value)

    def everything(self) -> None:
        """Takes all keys: nothing of this table matters."""
        self._tree.clear()
