"""Gradio imported without the stubs for editors that it writes into its own folder each time.

For each of its 80 component classes Gradio parses and renders source code and compares it with a .pyi file beside it: a third of what
its import takes, of no use to an app, and a race between two apps that start at once from one environment.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

_MODULE = "gradio.component_meta"
_WRITES_STUBS = "create_or_modify_pyi"


class _Finder(importlib.abc.MetaPathFinder):
    """Lets the ordinary finders find Gradio's module and puts `_Loader` before its loader; finds nothing else."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _MODULE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    """Loads the module as its own loader does, then takes the writing of stubs out of it."""

    def __init__(self, own: importlib.abc.Loader) -> None:
        self._own = own

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._own.exec_module(module)
        if hasattr(module, _WRITES_STUBS):
            setattr(module, _WRITES_STUBS, _write_nothing)


def install() -> None:
    """Take effect when gradio is imported later; without effect where it already is."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _write_nothing(*args: object) -> None:
    return None
