"""Many jobs, one a line: a result or an error line for each, in order."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

from memfit.cli.output import closed_pipe, input_bytes
from memfit.errors import InputFileError

if TYPE_CHECKING:
    from memfit.speed.calibration import Calibration

MAX_LINE_BYTES = 4 << 20


def run(source: str, *, full: bool, calibration: Calibration | None = None) -> int:
    """Reads ``source`` (``-`` is standard input) and writes a JSON line for each of its lines that is not blank.

    Args:
        source: a path or ``-``.
        full: with assumptions and changes, which takes some twenty estimates a job.
        calibration: other figures of the time model than the shipped ones.

    Returns:
        The exit code: 0 however many jobs are faulty; their lines say so.

    Raises:
        InputFileError: the file cannot be read.
    """
    from memfit.formula import batch
    from memfit.speed.estimate import documents_of

    with _open(source) as stream:
        if sys.stdout is None:  # nobody reads the answers
            return 0
        out = sys.stdout.buffer
        for answer in batch.run(_lines(stream), full=full, more=partial(documents_of, calibration=calibration)):
            with closed_pipe():
                out.write(answer + b"\n")
        with closed_pipe():
            out.flush()
    return 0


def _open(source: str) -> IO[bytes]:
    if source == "-":
        return input_bytes()
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
