"""Modules that are imported when something of them is first asked for.

`import agent_sdk` costs at most 1.3 times what `import redis` does, so what the leases of an agent
do not need is left until then.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


class LazyModule:
    """A stand-in for a module; each name is looked up in the module itself."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self._name), name)


def later(*names: str) -> tuple[Any, ...]:
    """Give stand-ins for modules of this package."""
    return tuple(LazyModule(f"agent_sdk.{name}") for name in names)
