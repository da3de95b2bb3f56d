"""The command line: one file per command, loaded when it is called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs ``memfit`` and exits.

    Exit codes: 0 done (and it fits), 1 the answer is no, 2 bad input, 3 something is missing, 70 a bug in memfit.

    Args:
        argv: the words after the program's name; None takes those of the process.
    """
    from memfit.cli.app import app

    app.main(argv, prog_name="memfit")
