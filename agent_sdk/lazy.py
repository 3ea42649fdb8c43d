"""Lazy modules, imported at the first use of a name in them.

A program that leases starts quickly: modules that it may not need are left until then.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


class LazyModule:
    """Stand-in for a module; each name is looked up in the module itself."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self._name), name)


def later(*names: str) -> tuple[Any, ...]:
    """Return stand-ins for modules of this package."""
    return tuple(LazyModule(f"agent_sdk.{name}") for name in names)
