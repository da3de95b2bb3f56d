"""One entry for the text formats: the ending of the file name says which reader reads it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any

from memfit.errors import InputFileError
from memfit.readers.bounded import MAX_BYTES, read_text, show_path
from memfit.readers.json_text import parse_json
from memfit.readers.toml_text import parse_toml
from memfit.readers.yaml_text import parse_yaml

_PARSERS: Mapping[str, Callable[[str, str], Any]] = {"toml": parse_toml, "yaml": parse_yaml, "json": parse_json}

FORMATS: Mapping[str, str] = {".toml": "toml", ".yaml": "yaml", ".yml": "yaml", ".json": "json"}
"""File ending -> format."""


def parse_text(text: str, fmt: str, name: str) -> Any:
    """The value of a text in one of the formats ``toml``, ``yaml`` or ``json``.

    Raises:
        InputFileError: the text is not what the format asks for.
    """
    return _PARSERS[fmt](text, name)


def read_tree(path: str | os.PathLike[str], *, limit: int = MAX_BYTES) -> Any:
    """The value of a ``.toml``, ``.yaml``, ``.yml`` or ``.json`` file.

    Raises:
        InputFileError: another ending, or the file is missing, too large or not what it claims to be.
    """
    name = show_path(path)
    fmt = FORMATS.get(PurePath(os.fsdecode(path)).suffix.lower())
    if fmt is None:
        if not os.path.lexists(path):
            raise InputFileError(f"no such file: {name}", hint=f"read are {', '.join(FORMATS)}")
        raise InputFileError(f"{name}: not a known kind of file", hint=f"one of {', '.join(FORMATS)}")
    return parse_text(read_text(path, limit=limit), fmt, name)
