"""Calls a function right after a module was imported, whenever that is."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

_CALLS: dict[str, list[Callable[[Any], None]]] = {}


def imported(name: str, call: Callable[[Any], None]) -> None:
    """Call ``call(module)`` once ``name`` has been imported; at once when it already is."""
    module = sys.modules.get(name)
    if module is not None and name not in _CALLS:
        call(module)
    else:
        _CALLS.setdefault(name, []).append(call)


def start() -> None:
    """Watch imports from now on."""
    sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """Lets the other finders find, and wraps the loader of the modules that somebody waits for."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in _CALLS:
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _Loader(spec.loader)  # type: ignore[assignment]
                return spec
        return None


class _Loader:
    """A loader that tells when the module is there; everything else is the real loader's."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def create_module(self, spec: Any) -> Any:
        return self._real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._real.exec_module(module)
        if module.__spec__ is not None:
            module.__spec__.loader = self._real
        module.__loader__ = self._real
        for call in _CALLS.pop(module.__name__, ()):
            call(module)
