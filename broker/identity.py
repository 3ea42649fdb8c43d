"""Identity of a reporter (its machine, its boot, its process) and of a person at a shell.

The word is told with each report. The boot comes first: two that differ in it are two machines. A
machine id is for people, and hashed: machine-id(5) asks not to publish it.
"""

from __future__ import annotations

import getpass
import os
import re
from hashlib import sha256
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")

STARTED: Final = 19
"""Place of a process's start after its name in `/proc/<pid>/stat`; see proc(5)."""

PARTS: Final = 5

RIVAL_MS: Final = 60_000
"""Milliseconds for which a refused reporter counts as present; as in `lua/lib/names.lua`."""


def user_at_host() -> str:
    """Name the person at this shell, in the letters of an agent's name: `ann@gpu-host-3`."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a uid without an entry in passwd, as containers have
        user = f"uid-{os.getuid()}"
    name = f"{user}@{os.uname().nodename}"
    return re.sub(r"[^A-Za-z0-9._:@/-]", "-", name)[:128]


def own_identity(proc: Path = PROC, etc: Path = Path("/etc")) -> str:
    """Return this process's identity `boot.machine.namespace.pid.start`; empty without /proc."""
    boot, start = _boot(proc), start_of(proc, "self")
    if not boot or not start:
        return ""
    machine = sha256(b"gpu-broker " + _read(etc / "machine-id").encode()).hexdigest()[:8]
    return f"{boot}.{machine}.{_namespace(proc)}.{os.getpid()}.{start}"


def has_ended(identity: str, proc: Path = PROC) -> bool:
    """Tell whether that process is known to have ended; one of another machine never is."""
    parts = identity.split(".")
    if len(parts) != PARTS or parts[0] != _boot(proc) or parts[2] != _namespace(proc):
        return False
    return start_of(proc, parts[3]) != parts[4]


def machine_of(identity: str) -> str:
    """Return the machine and the process of an identity, for people."""
    parts = identity.split(".")
    if len(parts) != PARTS:
        return "another reporter"
    return f"machine {parts[1]} (boot {parts[0]}), process {parts[3]}"


def _boot(proc: Path) -> str:
    return _read(proc / "sys/kernel/random/boot_id").replace("-", "")[:12]


def _namespace(proc: Path) -> str:
    try:
        return str((proc / "self/ns/pid").stat().st_ino)
    except OSError:
        return "0"


def start_of(proc: Path, pid: str) -> str:
    """Return a process's start in clock ticks since boot; empty: it has ended."""
    words = _read(proc / pid / "stat").rpartition(")")[2].split()
    return words[STARTED] if len(words) > STARTED and words[0] not in {"Z", "X"} else ""


def _read(file: Path) -> str:
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return ""
