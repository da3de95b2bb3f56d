"""Bytes, sizes and counts: one parser and one formatter for all of memfit.

Bytes are ``int`` everywhere inside. "GiB" means 2**30, "GB" means 10**9; a bare number with ``k``/``m``
is a count (tokens, sequences) in powers of 1024, as in "8k" tokens.
"""

from __future__ import annotations

import re

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
GB = 10**9

_BYTE_UNITS = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": GB,
    "tb": 10**12,
    "kib": KIB,
    "mib": MIB,
    "gib": GIB,
    "tib": 1 << 40,
}
_NUMBER = re.compile(r"^\s*([0-9][0-9_]{0,30}(?:\.[0-9]{1,12})?)\s*([A-Za-z]{0,3})\s*$")
_COUNT_UNITS = {"": 1, "k": 1 << 10, "ki": 1 << 10, "m": 1 << 20, "mi": 1 << 20}


def parse_bytes(text: str) -> int:
    """Read "80GiB", "80 GB", "512MiB" or plain bytes "1024" as bytes.

    Raises:
        ValueError: the text is not a number with a known unit.
    """
    match = _NUMBER.match(text)
    unit = match.group(2).lower() if match else ""
    if match is None or (unit and unit not in _BYTE_UNITS):
        msg = f"not a size in bytes: {text!r} (write for example 80GiB, 80GB or 512MiB)"
        raise ValueError(msg)
    return round(float(match.group(1).replace("_", "")) * _BYTE_UNITS.get(unit, 1))


def parse_count(text: str) -> int:
    """Read a count such as "8192", "8k" (8192) or "1m" (1048576).

    Raises:
        ValueError: the text is not a whole count.
    """
    match = _NUMBER.match(text)
    unit = match.group(2).lower() if match else ""
    if match is None or unit not in _COUNT_UNITS:
        msg = f"not a count: {text!r} (write for example 8192 or 8k)"
        raise ValueError(msg)
    value = float(match.group(1).replace("_", "")) * _COUNT_UNITS[unit]
    if value != int(value):
        msg = f"not a whole count: {text!r}"
        raise ValueError(msg)
    return int(value)


def format_gib(num_bytes: float, digits: int = 2) -> str:
    """Bytes as text in GiB, e.g. ``12.34 GiB``."""
    return f"{num_bytes / GIB:.{digits}f} GiB"


def format_bytes(num_bytes: float) -> str:
    """Bytes as text in the binary unit that suits the size."""
    size = abs(num_bytes)
    for limit, unit in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size >= limit:
            return f"{num_bytes / limit:.2f} {unit}"
    return f"{num_bytes:.0f} B"


def format_count(value: float) -> str:
    """A parameter or token count as people write it: 8.03B, 494M, 12.3k."""
    for limit, unit in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{unit}" if abs(value) < 10 * limit else f"{value / limit:.1f}{unit}"
    return f"{value:.0f}"
