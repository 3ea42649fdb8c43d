"""NVML's Python module and its library, found where they are hidden by others or out of the way."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final

from broker.devices.sample import text

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import ModuleType

NEEDED: Final = (
    "NVMLLibraryMismatchError", "nvmlMemory_v2", "nvmlDeviceGetFieldValues",
    "nvmlDeviceGetRemappedRows",
)  # fmt: skip
"""Names of nvidia-ml-py that other packages' modules of its name lack, or some of them."""

OURS: Final = "nvidia_ml_py_pynvml"
"""Name of nvidia-ml-py's module where another one has its own name."""

LIBRARY: Final = "libnvidia-ml.so.1"

FOLDERS: Final = (
    "/run/opengl-driver/lib",  # NixOS
    "/usr/lib/wsl/lib",  # Windows Subsystem for Linux
    "/usr/local/nvidia/lib64",  # containers of Google's and of older NVIDIA runtimes
    "/usr/lib64/nvidia",
    "/usr/lib/x86_64-linux-gnu/nvidia/current",  # Debian
    "/usr/lib/aarch64-linux-gnu/nvidia/current",
    "/usr/lib/aarch64-linux-gnu/nvidia",  # Jetson
)
"""Folders of drivers that the loader does not search by itself on some systems."""


class BindingError(Exception):
    """Error for a module `pynvml` that is not NVIDIA's; its text has the way out."""


def load_module() -> tuple[ModuleType, str]:
    """Return nvidia-ml-py's module, and a warning where another package's hides it.

    Raises:
        ImportError: there is none.
        BindingError: there is another package's alone.
        Exception: there is a broken one alone.
    """
    spec = importlib.util.find_spec("pynvml")
    if spec is None:
        raise ImportError("there is no module pynvml")
    broken: Exception | None = None
    of = f"{text(spec.origin)[:120]}{_package()}"
    try:
        module = importlib.import_module("pynvml")
    except Exception as error:  # noqa: BLE001 - it may be written for Python 2
        broken = error
        of = f"a broken pynvml ({of})"
    else:
        if all(hasattr(module, name) for name in NEEDED):
            return module, ""
        of = f"another package's pynvml ({of})"
    if (hidden := _hidden(spec.origin)) is not None:
        return hidden, f"{of} hides nvidia-ml-py's, which is used all the same: uninstall the other"
    if broken is not None:
        raise broken
    raise BindingError(
        f"{of} is in the place of nvidia-ml-py's: pip uninstall nvidia-ml-py3 pynvml, then "
        "pip install --force-reinstall nvidia-ml-py"
    )


def _hidden(other: str | None) -> ModuleType | None:
    """Return the module that nvidia-ml-py itself installed, if it is another file."""
    try:
        file = Path(str(metadata.distribution("nvidia-ml-py").locate_file("pynvml.py")))
    except metadata.PackageNotFoundError:
        return None
    if not file.exists() or (other and file.samefile(other)):
        return None  # overwritten
    spec = importlib.util.spec_from_file_location(OURS, file)
    if spec is None or spec.loader is None:
        return None
    module = sys.modules[OURS] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module if all(hasattr(module, name) for name in NEEDED) else None


def _package() -> str:
    """Return the names of the packages that install a `pynvml`, for a sentence."""
    owners = set(metadata.packages_distributions().get("pynvml", ())) - {"nvidia-ml-py"}
    return f" of {', '.join(sorted(owners))}" if owners else ""


def preload(folders: Iterable[str] = FOLDERS) -> str:
    """Load the driver's library from a place that the loader does not search; return its path.

    The loader takes a library that is there already for one of the same name. Empty: there is none.
    """
    for folder in folders:
        path = Path(folder)
        path = path / LIBRARY if path.is_dir() else path
        try:
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return str(path)
    return ""
