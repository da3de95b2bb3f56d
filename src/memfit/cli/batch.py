"""Many jobs, one a line: a result or an error line for each, in order."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import click

from memfit.cli.output import closed_pipe
from memfit.errors import InputFileError, MemfitError
from memfit.report.json import dumps, error_fields, result

MAX_LINE_BYTES = 4 << 20


def run(source: str, *, full: bool) -> int:
    """Reads ``source`` (``-`` is standard input) and writes a JSON line for each of its lines that is not blank.

    Returns:
        The exit code: 0 however many jobs are faulty; their lines say so.

    Raises:
        InputFileError: the file cannot be read.
    """
    streaming = source == "-"
    with _open(source) as stream:
        out = click.get_binary_stream("stdout")
        lines = results(_lines(stream), full=full)
        with closed_pipe():
            for line in lines:
                out.write(line)
                if streaming:  # whoever waits for the answer may not send the next job before it
                    out.flush()
            out.flush()
    return 0


def _open(source: str) -> IO[bytes]:
    if source == "-":
        return click.get_binary_stream("stdin")
    try:
        return Path(source).open("rb")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a usable path"
        raise InputFileError(f"cannot read `{source[:200]}`: {reason}") from None


def _lines(stream: IO[bytes]) -> Iterator[bytes]:
    """The lines of a stream; of a longer one than any job's only so much that it is found out."""
    try:
        while line := stream.readline(MAX_LINE_BYTES + 1):
            yield line
            while len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
                line = stream.readline(MAX_LINE_BYTES + 1)
                if not line:
                    return
    except (OSError, ValueError) as error:
        raise InputFileError(f"reading stopped: {error}") from None


def results(lines: Iterable[bytes], *, full: bool) -> Iterator[bytes]:
    """A result line for each line that is not blank.

    Args:
        lines: job documents, or records with a ``job`` and an ``id``.
        full: with assumptions and changes, which takes some twenty estimates a job.
    """
    fast = _fast() if not full else None
    return fast.run(lines) if fast is not None else _plain(lines, full)


def _fast() -> Any:
    """The batch engine of the memory model, where it is there."""
    name = "memfit.formula.batch"
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        return None


def _plain(lines: Iterable[bytes], full: bool) -> Iterator[bytes]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield _answer(number, line, full)


def _answer(number: int, line: bytes, full: bool) -> bytes:
    from memfit.formula.estimate import estimate
    from memfit.readers import parse_json
    from memfit.readers.bounded import decode_text

    job_id = None
    try:
        name = f"line {number}"
        if len(line) > MAX_LINE_BYTES:
            raise InputFileError(f"{name} is longer than {MAX_LINE_BYTES >> 20} MiB")
        document = parse_json(decode_text(line, name), name)
        if not isinstance(document, dict):
            raise InputFileError(f"{name} does not hold a job: it is not a table")
        if "job" in document:
            job_id = document.get("id")
            document = document["job"]
            if not isinstance(document, dict):
                raise InputFileError(f"{name}: `job` is not a table")
        answer = result(estimate(document), job_id, full=full)
    except MemfitError as error:
        answer = {"id": job_id, "line": number, "error": error_fields(error)}
    return dumps(answer, line=True).encode()
