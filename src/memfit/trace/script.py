"""A user's own training script under the tracer: ``memfit trace --script train.py``.

The script runs as it is, on fake CUDA tensors, until it has taken so many optimizer steps. What it does before the
first forward is loading. Imported only once torch is wanted.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules import module as nn_module

from memfit.errors import MemfitError, MissingError
from memfit.trace.engine import available, run
from memfit.trace.hidden import Gpu
from memfit.trace.recorder import Recorder
from memfit.trace.result import Trace
from memfit.trace.values import Values
from memfit.trace.where import Where


class _EnoughError(BaseException):
    """The script has taken the steps that were asked for; no ``except Exception`` of its own may catch this."""


class _Steps:
    """Counts the steps of the optimizer that steps first, and ends the script behind the last one."""

    def __init__(self, recorder: Recorder, where: Where, steps: int) -> None:
        self.recorder, self.where, self.wanted = recorder, where, steps
        self.done = 0
        self._first: Any = None
        self._handle = nn_module.register_module_forward_pre_hook(self._forward)
        where.on_step.append(self._stepped)

    def _forward(self, _module: Any, _args: Any) -> None:
        if self.done == self.wanted:
            raise _EnoughError
        if self.where.loading:
            self.recorder.begin(0)

    def _stepped(self, optimizer: Any, done: bool) -> None:
        if self._first is None:
            self._first = optimizer
        if not done or optimizer is not self._first:
            return
        self.done += 1
        if self.done < self.wanted:
            self.recorder.end_step()
            self.recorder.begin(self.done)

    def close(self) -> None:
        """Take the hook away."""
        self._handle.remove()


def trace_script(path: str | Path, arguments: Sequence[str] = (), *, steps: int = 2, gpu: Gpu | None = None) -> Trace:
    """Trace a script until it has taken ``steps`` optimizer steps, or ends.

    Args:
        path: the script; it runs as ``__main__``.
        arguments: its ``sys.argv`` without the first.
        steps: optimizer steps, two for a steady one.
        gpu: the card that is meant.

    Raises:
        MissingError: this torch does not run fake CUDA tensors.
        MemfitError: the script cannot be read, stops with an error of its own, or takes no optimizer step.
    """
    path = Path(path)
    if not path.is_file():
        raise MemfitError(f"there is no script `{str(path)[:200]}`")
    refused = available("fake-cuda")
    if refused:
        raise MissingError(
            f"a script needs fake CUDA tensors: {refused}", hint="torch 2.11 or later, Linux x86_64 is known to work"
        )
    counters: list[_Steps] = []

    def program() -> None:
        with _as_main(path, arguments):
            runpy.run_path(str(path), run_name="__main__")

    try:
        trace = run(
            lambda: _until_enough(program),
            lambda _state: None,
            engine="fake-cuda",
            steps=0,
            gpu=gpu,
            values=Values(host=True),
            watch=lambda recorder, where: counters.append(_Steps(recorder, where, steps)),
        )
    except MemfitError:
        raise
    except Exception as error:
        if os.environ.get("MEMFIT_DEBUG"):
            raise
        text = str(error).strip().partition("\n")[0][:300]
        raise MemfitError(
            f"the script stops with {type(error).__name__}: {text}",
            hint="a trace has tensors without data on one imaginary GPU: what needs values, files of weights, compiled "
            "kernels or other processes does not run in it; MEMFIT_DEBUG=1 shows where",
        ) from error
    finally:
        for counter in counters:
            counter.close()
    if not counters[0].done:
        raise MemfitError("the script takes no optimizer step", hint="a torch optimizer's step() ends a step")
    return trace.with_notes((f"the script ran until its optimizer step {counters[0].done}",))


def _until_enough(program: Any) -> None:
    with contextlib.suppress(_EnoughError), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the script's concern, not the trace's
        program()


@contextlib.contextmanager
def _as_main(path: Path, arguments: Sequence[str]) -> Iterator[None]:
    """Arguments, import path and output as the script expects them; what it prints goes to standard error."""
    argv, paths = sys.argv, list(sys.path)
    sys.argv = [str(path), *arguments]
    sys.path.insert(0, str(path.resolve().parent))
    try:
        with contextlib.redirect_stdout(sys.stderr), torch.enable_grad():
            code = None
            try:
                yield
            except SystemExit as stop:
                code = stop.code
            if code not in (None, 0):
                raise MemfitError(f"the script ends with exit code {str(code)[:100]}")
    finally:
        sys.argv, sys.path[:] = argv, paths
