"""Loaded by Python at its start, as this folder stands on ``PYTHONPATH``: switches the hooks on, then the user's own.

A ``sitecustomize`` of the environment is hidden by this one, so it is looked up and run here.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys


def _next_one() -> None:
    here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - no imports that a script may not want
    rest = [path for path in sys.path if os.path.abspath(path) != here]  # noqa: PTH100
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", rest)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


if os.environ.get("MEMFIT_DRYRUN_FOLDER"):
    import memfit_hook  # type: ignore[import-not-found, unused-ignore]

    memfit_hook.activate()
_next_one()
