"""What a checkpoint's own quantisation says: the type of its weights, and the modules that it leaves as they are."""

from __future__ import annotations

import re
from collections.abc import Callable
from fnmatch import translate
from typing import Any

from memfit.models.architecture import Architecture

_LEFT_OUT = ("modules_to_not_convert", "ignored_layers", "ignore")
"""Where transformers (AWQ, fp8, mxfp4), vLLM's fp8 and compressed-tensors keep their lists."""
_MOST_PATTERNS = 4096
_LONGEST_PATTERN = 256


def method(arch: Architecture) -> str | None:
    """The ``quant_method`` of the configuration, None for a plain checkpoint."""
    found = (arch.quantization or {}).get("quant_method")
    return found if isinstance(found, str) and found else None


def stored_as(arch: Architecture) -> str | None:
    """The storage type of the quantised weights in the words of a job, None when there is none for it."""
    name, bits = method(arch), (arch.quantization or {}).get("bits", 4)
    return name if name in ("fp8", "mxfp4") or (name in ("awq", "gptq") and bits == 4) else None


def left_out(arch: Architecture) -> Callable[[str], bool]:
    """Whether a module, or one above it, is kept out of the quantisation; takes full names of parameters."""
    plain: set[str] = set()
    wild: list[str] = []
    for pattern in _patterns(arch.quantization or {}):
        if "*" in pattern:
            wild.append(translate(pattern))
        else:
            plain.add(pattern)
    matched = re.compile("|".join(wild)).match if wild else None

    def kept(name: str) -> bool:
        parts = name.split(".")
        inside = (
            ".".join(parts[start:stop])
            for start in range(len(parts))
            for stop in range(start + 1, len(parts) + 1)
        )  # fmt: skip
        return any(path in plain or (matched is not None and matched(path) is not None) for path in inside)

    return kept


def _patterns(found: dict[str, Any]) -> list[str]:
    lists = (found.get(key) for key in _LEFT_OUT)
    texts = [text for one in lists if isinstance(one, list | tuple) for text in one if isinstance(text, str)]
    return [text for text in texts if 0 < len(text) <= _LONGEST_PATTERN][:_MOST_PATTERNS]
