"""What every command shares: the options of output, the page that is written on, and standard output itself."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, BinaryIO, TypeVar

import click

from memfit.errors import InputFileError, MemfitError

_Command = TypeVar("_Command", bound=Callable[..., Any])
_PIPE_WIDTH = 80
_NARROWEST, _WIDEST = 40, 140
_PIPE_CLOSED = 141  # what a shell shows for a program that SIGPIPE ended


class UsageFaultError(MemfitError):
    """Words on the command line that no command takes."""

    code = "usage"


def hinted(text: str, hint: str, ctx: click.Context | None = None) -> click.UsageError:
    """A usage error with a hint of its own."""
    error = click.UsageError(text, ctx)
    error.memfit_hint = hint  # type: ignore[attr-defined]
    return error


def output_options(command: _Command) -> _Command:
    """``--json``, ``--quiet``, ``--verbose``, ``--no-color``."""
    options = [
        click.option("--json", "as_json", is_flag=True, help="Write JSON; errors too, in place of the result."),
        click.option("--quiet", "-q", is_flag=True, help="Write the first line only."),
        click.option("--verbose", "-v", is_flag=True, help="Write notes, sources and all rows."),
        click.option("--no-color", is_flag=True, help="Write no colours (so does the variable NO_COLOR)."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def make_page(*, verbose: bool = False, no_color: bool = False, stderr: bool = False) -> Any:
    """The page for this process: terminal or pipe, width, colours, characters."""
    from memfit.report.page import Page

    stream = sys.stderr if stderr else sys.stdout
    terminal = bool(stream is not None and stream.isatty())
    return Page(
        width=_width(terminal),
        color=_color(terminal) and not no_color,
        unicode=_encoding(stream).replace("-", "").startswith("utf"),
        verbose=verbose,
    )


def _width(terminal: bool) -> int:
    stated = os.environ.get("COLUMNS", "")
    if stated.isdigit() and int(stated):
        width = int(stated)
    else:
        width = shutil.get_terminal_size((_PIPE_WIDTH, 24)).columns if terminal else _PIPE_WIDTH
    return min(max(width, _NARROWEST), _WIDEST)


def _color(terminal: bool) -> bool:
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return terminal and os.environ.get("TERM") != "dumb"


def _encoding(stream: Any) -> str:
    return (getattr(stream, "encoding", None) or "ascii").lower()


def emit(text: str) -> None:
    """Writes a result to standard output.

    Characters that its encoding lacks are escaped. A reader that went away ends the program quietly.

    Raises:
        MemfitError: standard output cannot be written to.
    """
    stream = sys.stdout
    if stream is None:
        return
    encoding = _encoding(stream)
    with closed_pipe():
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()


class closed_pipe:  # noqa: N801 - a context manager reads as a word
    """Ends the program quietly when nobody reads standard output any more; other faults of writing become errors."""

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        """Turns faults of writing into an exit or a MemfitError."""
        if not isinstance(error, OSError):
            return
        _drop(sys.stdout)
        if isinstance(error, BrokenPipeError):
            raise click.exceptions.Exit(_PIPE_CLOSED) from None
        raise MemfitError(f"cannot write the result: {error.strerror or error}") from None


def _drop(stream: Any) -> None:
    """Points a stream nowhere, so that the interpreter's last flush does not fail again."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())


def input_bytes() -> BinaryIO:
    """Standard input.

    Raises:
        InputFileError: it is closed.
    """
    if sys.stdin is None:
        raise InputFileError("standard input is closed", hint="name a file, or pipe one in")
    return sys.stdin.buffer


def emit_error(error: MemfitError, words: Sequence[str]) -> int:
    """Writes an error to standard error, and as JSON to standard output where JSON was asked for; the exit code.

    Args:
        error: what is wrong.
        words: the command line.
    """
    from memfit.report.error import error_text

    flags: Mapping[str, str] = getattr(error, "flags", {})
    page = make_page(no_color="--no-color" in words, stderr=True)
    try:
        click.echo(error_text(page, error, flags), nl=False, err=True, color=page.color)
    except OSError:  # nobody can read it: the exit code still tells
        _drop(sys.stderr)
    if "--json" in words:
        from memfit.report.json import dumps, error_document

        with suppress(click.exceptions.Exit, MemfitError):
            emit(dumps(error_document(error)))
    return error.exit_code
