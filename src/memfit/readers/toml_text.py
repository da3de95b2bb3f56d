"""TOML within bounds: no dates, no infinities, no keys of endless dotted parts."""

from __future__ import annotations

import re
import tomllib
from typing import Any

from memfit.errors import InputFileError
from memfit.readers.bounded import MAX_DEPTH, check_tree

# tomllib takes time that grows with the square of the parts of one dotted key.
_DOTTED = re.compile(r"""(?:\.[ \t]*(?:[A-Za-z0-9_-]+|"[^"\n]*"|'[^'\n]*')[ \t]*){64}""")


def parse_toml(text: str, name: str) -> dict[str, Any]:
    """The table of one TOML document.

    Args:
        text: the document.
        name: what it is called in messages.

    Raises:
        InputFileError: not TOML, dates, numbers that are not finite, or a depth beyond the bounds.
    """
    if _DOTTED.search(text):
        raise InputFileError(f"{name} has a key of more than {MAX_DEPTH} dotted parts")
    try:
        value = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputFileError(f"{name} is not TOML: {str(error)[:200]}") from None
    except RecursionError:
        raise InputFileError(f"{name} is nested more than {MAX_DEPTH} deep") from None
    except ValueError:  # a number of thousands of digits, an impossible date
        raise InputFileError(f"{name} is not TOML: a number or date that cannot be read") from None
    check_tree(value, name)
    return value
