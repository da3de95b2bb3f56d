"""Checked access to one configuration mapping (the content of a config.json): types, bounds, defaults, errors.

A value is looked up under its key, then under other names that the family gives it (``n_embd`` for ``hidden_size``),
then among the defaults of the transformers configuration class of that ``model_type`` (``defaults.json``, generated).
Unknown keys are ignored and nothing in a configuration is ever run (``auto_map`` is not followed).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from memfit.errors import ConfigError, InputFileError

MAX_FILE_BYTES = 4 << 20
MAX_DEPTH = 32
MAX_VALUES = 200_000
MAX_SIZE = 1 << 28  # no width, count or vocabulary of any real model comes near
MAX_LAYERS = 4096

_DTYPES = frozenset(("float32", "float16", "bfloat16", "float64", "float8_e4m3fn", "float8_e5m2", "int8", "uint8"))
# Shapes that decide the whole count: when a configuration leaves one out, the class default is used, and said.
_TOLD_WHEN_ASSUMED = frozenset(
    ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
)


@cache
def class_defaults() -> Mapping[str, Mapping[str, Any]]:
    """Class defaults of the transformers configurations by model_type; ``aliases``: common key to native key."""
    text = resources.files("memfit.models").joinpath("defaults.json").read_text("utf-8")
    loaded: dict[str, dict[str, Any]] = json.loads(text)["model_types"]
    return loaded


def load_file(path: Path) -> dict[str, Any]:
    """Read a config.json, or the one inside a folder.

    Raises:
        InputFileError: missing, too large, or not a JSON object.
    """
    file = path / "config.json" if path.is_dir() else path
    try:
        with file.open("rb") as handle:
            raw = handle.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputFileError(f"cannot read the configuration `{file}`: {reason}") from None
    if len(raw) > MAX_FILE_BYTES:
        raise InputFileError(f"`{file}` is larger than {MAX_FILE_BYTES >> 20} MiB: not a config.json")
    return load_text(raw, str(file))


def load_text(raw: bytes | str, name: str = "configuration") -> dict[str, Any]:
    """Parse the text of a config.json.

    Raises:
        InputFileError: not JSON, or not an object.
    """
    try:
        text = raw.decode("utf-8-sig") if isinstance(raw, bytes) else raw
        data = json.loads(text)
    except UnicodeDecodeError:
        raise InputFileError(f"`{name}` is not UTF-8 text") from None
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise InputFileError(f"`{name}` is not JSON: {reason}") from None
    if not isinstance(data, dict):
        raise InputFileError(f"`{name}` holds {_kind(data)}, not an object of configuration keys")
    return data


def check_shape(data: Mapping[str, Any]) -> None:
    """Refuse mappings that are nested too deep or hold too many values, before anything walks them.

    Raises:
        ConfigError: over the caps.
    """
    level: list[Any] = [data]
    seen = 0
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for node in level:
            below.extend(node.values() if isinstance(node, Mapping) else node)
            if seen + len(below) > MAX_VALUES:
                raise ConfigError(f"the configuration holds more than {MAX_VALUES} values")
        seen += len(below)
        level = [n for n in below if isinstance(n, Mapping | list | tuple)]
        if not level:
            return
    raise ConfigError(f"the configuration is nested deeper than {MAX_DEPTH} levels")


class Config:
    """One configuration (or a nested part of it) with typed getters; each raises ConfigError on a bad value.

    Attributes:
        data: the mapping as given.
        model_type: the family whose defaults and key names apply.
        path: where this part stands, e.g. ``text_config.``; empty at the top.
        notes: facts that were assumed, in words; shared with nested parts.
    """

    __slots__ = ("_aliases", "_defaults", "data", "model_type", "notes", "path")

    def __init__(
        self, data: Mapping[str, Any], model_type: str, *, path: str = "", notes: list[str] | None = None
    ) -> None:
        self.data = data
        self.model_type = model_type
        self.path = path
        self.notes: list[str] = [] if notes is None else notes
        self._defaults = class_defaults().get(model_type, {})
        self._aliases: Mapping[str, str] = self._defaults.get("aliases", {})

    def _fail(self, key: str, message: str, *, hint: str | None = None) -> ConfigError:
        return ConfigError(f"configuration key `{self.path}{key}`: {message}", hint=hint)

    def raw(self, key: str, *others: str) -> Any:
        """The value under ``key`` or another of its names as given, unchecked; None when absent or null."""
        native = self._aliases.get(key, key)
        for name in (native, key, *others):
            value = self.data.get(name)
            if value is not None:
                return value
        return None

    def default(self, key: str, *others: str) -> Any:
        """The class default of ``key`` for this model_type, None without one."""
        names = (self._aliases.get(key, key), key, *others)
        return next((self._defaults[name] for name in names if name in self._defaults), None)

    def _fall_back(self, key: str, others: tuple[str, ...], default: Any) -> Any:
        """What stands in for a value that is not stated: the class default, then the caller's."""
        value = self.default(key, *others)
        return default if value is None else value

    def has(self, key: str) -> bool:
        """Whether the configuration states ``key`` (not null)."""
        return self.raw(key) is not None

    def null(self, key: str, *others: str) -> bool:
        """Whether the configuration states ``key`` as null, which overrides the class default."""
        names = (self._aliases.get(key, key), key, *others)
        return any(name in self.data for name in names) and self.raw(key, *others) is None

    def size(self, key: str, *others: str, default: int | None = None, low: int = 1, high: int = MAX_SIZE) -> int:
        """A whole number in [low, high]; ``others`` are further names of the key.

        ``default`` stands in where neither the configuration nor its class has a value.

        Raises:
            ConfigError: of the wrong type, out of bounds, or missing (or null) without a default.
        """
        value = self.opt_size(key, *others, low=low, high=high, default=default)
        if value is None:  # null in the configuration: as if it were not stated
            value = self._fall_back(key, others, default)
        if value is None:
            names = " or ".join(f"`{self.path}{k}`" for k in (key, *others))
            raise ConfigError(
                f"the configuration of `{self.model_type}` lacks {names}",
                hint="the key shapes the model and has no default for this model_type",
            )
        return value

    def opt_size(
        self, key: str, *others: str, default: int | None = None, low: int = 1, high: int = MAX_SIZE
    ) -> int | None:
        """As ``size``, but None where the configuration says null, or neither it nor a default says anything."""
        value = self.raw(key, *others)
        if value is None:
            if self.null(key, *others):
                return None
            value = self._fall_back(key, others, default)
            if value is None:
                return None
            if key in _TOLD_WHEN_ASSUMED:
                self.note(f"`{self.path}{key}` is not stated: {value}, the default of {self.model_type}")
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._fail(key, f"must be a whole number from {low} to {high}, is {_show(value)}")
        if not low <= value <= high:
            raise self._fail(key, f"must be from {low} to {high}, is {_show(value)}")
        return value

    def number(
        self, key: str, *others: str, default: float | None = None, low: float = 0.0, high: float = 1.0
    ) -> float:
        """A finite number in [low, high] (dropout, partial rotary factor); missing without default: low."""
        value = self.raw(key, *others)
        if value is None:
            value = self._fall_back(key, others, default)
            if value is None:
                return low
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self._fail(key, f"must be a number from {low:g} to {high:g}, is {_show(value)}")
        if not low <= value <= high:
            raise self._fail(key, f"must be from {low:g} to {high:g}, is {_show(value)}")
        return float(value)

    def flag(self, key: str, *others: str, default: bool | None = None) -> bool:
        """True or false; missing without default: false."""
        value = self.raw(key, *others)
        if value is None:
            value = self._fall_back(key, others, default)
            if value is None:
                return False
        if not isinstance(value, bool):
            raise self._fail(key, f"must be true or false, is {_show(value)}")
        return value

    def text(self, key: str, *others: str, default: str | None = None) -> str:
        """A short string; missing without default: empty."""
        value = self.raw(key, *others)
        if value is None:
            value = self._fall_back(key, others, default)
            if value is None:
                return ""
        if not isinstance(value, str) or len(value) > 256:
            raise self._fail(key, f"must be a short text, is {_show(value)}")
        return value

    def sizes(
        self, key: str, *others: str, length: int | None = None, low: int = 0, high: int = MAX_SIZE
    ) -> tuple[int, ...] | None:
        """A list of whole numbers (of exactly ``length`` when given), None when absent."""
        value = self.raw(key, *others)
        if value is None:
            value = self.default(key)
            if value is None:
                return None
        if not isinstance(value, list | tuple) or len(value) > MAX_VALUES:
            raise self._fail(key, f"must be a list of whole numbers, is {_show(value)}")
        for item in value:
            if isinstance(item, bool) or not isinstance(item, int) or not low <= item <= high:
                raise self._fail(key, f"must hold whole numbers from {low} to {high}, holds {_show(item)}")
        if length is not None and len(value) != length:
            raise self._fail(key, f"must have {length} entries, has {len(value)}")
        return tuple(value)

    def texts(
        self, key: str, *others: str, length: int | None = None, allowed: tuple[str, ...] | None = None
    ) -> tuple[str, ...] | None:
        """A list of strings such as ``layer_types`` (of ``length`` entries, each ``allowed``), None when absent."""
        value = self.raw(key, *others)
        if value is None:
            return None
        if not isinstance(value, list | tuple) or len(value) > MAX_VALUES or not all(isinstance(v, str) for v in value):
            raise self._fail(key, f"must be a list of names, is {_show(value)}")
        if length is not None and len(value) != length:
            raise self._fail(key, f"must have {length} entries (one a layer), has {len(value)}")
        for item in value:
            if allowed is not None and item not in allowed:
                raise self._fail(key, f"holds {_show(item)}; known are {', '.join(allowed)}")
        return tuple(value)

    def child(self, key: str, model_type: str | None = None) -> Config:
        """The nested mapping under ``key`` (e.g. ``text_config``), empty when absent; its own model_type wins."""
        value = self.raw(key)
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            raise self._fail(key, f"must be an object, is {_show(value)}")
        inner = value.get("model_type")
        kind = inner if isinstance(inner, str) and inner else model_type or self.model_type
        return Config(value, kind, path=f"{self.path}{key}.", notes=self.notes)

    def layers(self, key: str = "num_hidden_layers", *others: str) -> int:
        """The number of layers."""
        return self.size(key, *others, high=MAX_LAYERS)

    def head_dim(self, hidden: int, heads: int) -> int:
        """``head_dim`` when stated (or the class has a fixed one), else hidden / heads, which must divide.

        Raises:
            ConfigError: hidden is no multiple of heads and no head_dim is given.
        """
        stated = self.opt_size("head_dim", high=1 << 16)
        if stated is not None:
            return stated
        if hidden % heads:
            raise self._fail("num_attention_heads", f"{heads} does not divide the hidden size {hidden}")
        return hidden // heads

    def rotary_dim(self, head_dim: int, *, default: float = 1.0) -> int:
        """Elements of each head that rotary embedding turns, from ``partial_rotary_factor``."""
        factor: float | None = None
        for holder in ("rope_parameters", "rope_scaling"):
            rope = self.raw(holder)
            if isinstance(rope, Mapping) and rope.get("partial_rotary_factor") is not None:
                factor = Config(rope, "", path=f"{self.path}{holder}.").number("partial_rotary_factor")
        if factor is None:
            factor = self.number("partial_rotary_factor", "rotary_pct", "rotary_percent", default=default)
        return int(head_dim * factor)

    def kv_heads(self, heads: int, *others: str) -> int:
        """``num_key_value_heads``; absent: as many as query heads. Must divide them."""
        kv = self.opt_size("num_key_value_heads", *others)
        if kv is None or (not self.has("num_key_value_heads") and not any(self.has(k) for k in others) and kv > heads):
            kv = heads
        if heads % kv:
            raise self._fail("num_key_value_heads", f"{kv} does not divide the {heads} query heads")
        return kv

    def dtype(self) -> str | None:
        """The storage dtype that the configuration states, None when it states none that is known."""
        value = self.raw("dtype", "torch_dtype")
        name = value.removeprefix("torch.") if isinstance(value, str) else None
        return name if name in _DTYPES else None

    def quantization(self) -> dict[str, Any] | None:
        """The ``quantization_config`` as read, or None."""
        value = self.raw("quantization_config")
        return dict(value) if isinstance(value, Mapping) and value else None

    def architecture_name(self) -> str:
        """The first name under ``architectures``, empty when there is none."""
        value = self.raw("architectures")
        first = value[0] if isinstance(value, list | tuple) and value else None
        return first if isinstance(first, str) and len(first) <= 256 else ""

    def note(self, text: str) -> None:
        """Record an assumption once."""
        if text not in self.notes:
            self.notes.append(text)


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")


def _show(value: Any) -> str:
    """A value for an error message, short whatever was given."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 200:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    text = repr(value) if isinstance(value, str | int | float | bool | type(None)) else type(value).__name__
    return text if len(text) <= 60 else f"{text[:57]}..."
