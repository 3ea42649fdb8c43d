"""Start of a command: what its first imports bring."""

from __future__ import annotations

import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

ERRORS = "redis.exceptions"


def errors_of_redis_py_alone() -> None:
    """Load redis-py's classes of errors, and leave the rest of it until it is used.

    `import redis` takes longer than all else that a command imports, and whatever imports a part
    of it imports all. Nearly every module of the SDK needs its errors, and they need nothing.
    """
    if "redis" in sys.modules or ERRORS in sys.modules:
        return
    package = find_spec("redis")
    if package is None or package.origin is None:
        return
    spec = spec_from_file_location(ERRORS, Path(package.origin).with_name("exceptions.py"))
    if spec is None or spec.loader is None:
        return
    module = module_from_spec(spec)
    sys.modules[ERRORS] = module
    spec.loader.exec_module(module)
