"""What all text readers share: a capped read of one regular file, and the check of a parsed tree."""

from __future__ import annotations

import math
import os
import stat
from pathlib import Path
from typing import Any

from memfit.errors import InputFileError

MAX_BYTES = 16 << 20  # the largest public config.json (id2label of 21k classes) is about 1.5 MB
MAX_DEPTH = 64  # real configurations nest less than 10 deep
MAX_NODES = 1_000_000
MAX_DIGITS = 40  # "never" values such as 1e30 occur in tokenizer files; nothing real is longer

# First bytes of files that people pass by mistake where text is expected.
_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"PK\x03\x04", "a zip archive (a PyTorch checkpoint is one)"),
    (b"GGUF", "a GGUF model"),
    (b"\x1f\x8b", "gzip data"),
    (b"\x80\x02", "a Python pickle"),
    (b"\x80\x03", "a Python pickle"),
    (b"\x80\x04", "a Python pickle"),
    (b"\x80\x05", "a Python pickle"),
    (b"\xff\xfe", "UTF-16 text"),
    (b"\xfe\xff", "UTF-16 text"),
    (b"\x89PNG", "a PNG image"),
    (b"%PDF", "a PDF document"),
    (b"\x7fELF", "a program"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself"),
    (b"<!doctype html", "a web page"),
    (b"<html", "a web page"),
)


def read_text(path: str | os.PathLike[str], *, limit: int = MAX_BYTES) -> str:
    """The text of one regular UTF-8 file, with or without a byte order mark.

    Args:
        path: the file.
        limit: most bytes that are read.

    Raises:
        InputFileError: no such file, not a regular file, not readable, too large, or not UTF-8 text.
    """
    name = show_path(path)
    try:
        status = Path(path).stat()
        if stat.S_ISDIR(status.st_mode):
            raise InputFileError(f"{name} is a folder, not a file", hint="name the file inside it")
        if not stat.S_ISREG(status.st_mode):
            raise InputFileError(f"{name} is not a regular file")
        with Path(path).open("rb") as file:
            data = file.read(limit + 1)
    except FileNotFoundError:
        raise InputFileError(f"no such file: {name}") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a usable path"
        raise InputFileError(f"cannot read {name}: {reason}") from None
    if len(data) > limit:
        raise InputFileError(f"{name} is larger than {limit >> 10} KiB, the most that is read of such a file")
    return decode_text(data, name)


def decode_text(data: bytes, name: str) -> str:
    """UTF-8 bytes as text; says what the data looks like when it is something else."""
    start = data.lstrip()[:32].lower()
    for magic, what in _MAGIC:
        if data.startswith(magic) or (magic.startswith((b"<", b"v")) and start.startswith(magic)):
            raise InputFileError(f"{name} is not what it claims to be: it looks like {what}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputFileError(
            f"{name} is not what it claims to be: not UTF-8 text (byte {error.start})", hint="save the file as UTF-8"
        ) from None


def show_path(path: str | os.PathLike[str]) -> str:
    """A path for messages: quoted, escaped and cut."""
    text = os.fsdecode(path)
    return ascii(text if len(text) <= 200 else text[:90] + "..." + text[-90:]) if text else "''"


def check_tree(value: Any, name: str, *, max_depth: int = MAX_DEPTH) -> None:
    """Checks that a parsed tree is plain data: dict, list, tuple, str, bool, None, bounded finite numbers.

    Raises:
        InputFileError: too deep, too many values, a number out of range, text that is not Unicode, a key that is not
            text, or a value of another type.
    """
    stack: list[tuple[Any, int]] = [(value, 0)]
    nodes = 0
    while stack:
        item, depth = stack.pop()
        nodes += 1
        kind = type(item)
        if kind is str:
            if not item.isascii():
                _check_unicode(item, name)
        elif item is None or kind is bool:
            continue
        elif kind is int:
            if item.bit_length() > 133:  # 10**40
                raise InputFileError(f"{name} holds a number of more than {MAX_DIGITS} digits")
        elif kind is float:
            if not math.isfinite(item):
                raise InputFileError(f"{name} holds a number that is not finite (nan or infinity)")
        elif isinstance(item, dict | list | tuple):
            if depth >= max_depth:
                raise InputFileError(f"{name} is nested more than {max_depth} deep")
            if len(item) + nodes + len(stack) > MAX_NODES:
                raise InputFileError(f"{name} holds more than {MAX_NODES} values")
            if isinstance(item, dict):
                for key, child in item.items():
                    if not isinstance(key, str):
                        raise InputFileError(f"{name} has a key that is not text")
                    if not key.isascii():
                        _check_unicode(key, name)
                    stack.append((child, depth + 1))
            else:
                stack.extend((child, depth + 1) for child in item)
        else:
            raise InputFileError(f"{name} holds a value of a kind that has no place here ({kind.__name__})")


def _check_unicode(text: str, name: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputFileError(f"{name} holds text that is not Unicode (a lone surrogate)") from None
