"""Socket of `gpu-broker serve`, taken before anything is started: a port, or a unix socket."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from broker.http.slow_clients import UNREAD_S
from broker.settings import Settings, SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BACKLOG: Final = 2048
"""Most connections that wait to be accepted."""

LISTENS: Final = "another program listens there; --uds names another path"


@contextmanager
def listening(settings: Settings) -> Iterator[socket.socket]:
    """Provide the socket; a unix socket's file is removed at the end, if it is still ours.

    Raises:
        SettingsError: it cannot be had.
    """
    if settings.uds is None:
        yield _on_port(settings)
        return
    path = settings.uds
    with _folder_of(path) as folder:
        listener = _on_file(folder, path, int(settings.uds_mode, 8))
        ours = _identity(folder, path.name)
    try:
        yield listener
    finally:
        listener.close()
        with suppress(OSError, SettingsError), _folder_of(path) as folder:
            if _identity(folder, path.name) == ours:
                os.unlink(path.name, dir_fd=folder)


def _on_port(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.bind else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Connections inherit it: the kernel ends one whose peer reads nothing, or is gone.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(UNREAD_S * 1000))
    try:
        listener.bind((settings.bind, settings.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise SettingsError(_not_had(settings, error)) from error
    return listener


@contextmanager
def _folder_of(path: Path) -> Iterator[int]:
    """Provide the locked folder: of two brokers that begin at once, one looks after the other."""
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        why = f"{path.parent} can hold no socket ({error.strerror})"
        raise SettingsError(f"{why}: --uds names a path in another folder") from error
    try:
        _lock(folder, path)
        yield folder
    finally:
        os.close(folder)


def _lock(folder: int, path: Path) -> None:
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise SettingsError(f"another program has locked {path.parent}: start again") from error


def _on_file(folder: int, path: Path, mode: int) -> socket.socket:
    _remove_stale(folder, path)
    listener = socket.socket(socket.AF_UNIX)
    before = os.umask(0o777 & ~mode)
    try:
        listener.bind(str(path))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        said = error.strerror or str(error)
        why = f"no socket can be made at {path} ({said})"
        raise SettingsError(f"{why}: --uds names another path") from error
    finally:
        os.umask(before)
    return listener


def _remove_stale(folder: int, path: Path) -> None:
    """Remove a socket to which nothing listens.

    Raises:
        SettingsError: something does, or it is no socket.
    """
    try:
        found = os.stat(path.name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise SettingsError(f"{path} is there, and is no socket: --uds names another path")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        code = probe.connect_ex(str(path))
    if code != errno.ECONNREFUSED:
        why = LISTENS if code in {0, errno.EAGAIN} else os.strerror(code)
        raise SettingsError(f"{path} cannot be had: {why}")
    with suppress(FileNotFoundError):
        os.unlink(path.name, dir_fd=folder)


def _identity(folder: int, name: str) -> tuple[int, int]:
    found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    return found.st_ino, found.st_ctime_ns


def _not_had(settings: Settings, error: OSError) -> str:
    """Return the reason for which the port cannot be had, and the settings that help."""
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return (
            f"{settings.bind} is no address of this machine ({error.strerror}): "
            "GPU_ORCHESTRATOR_HOST or --host names one, as 127.0.0.1 or 0.0.0.0"
        )
    return (
        f"port {settings.port} on {settings.bind} cannot be had ({error.strerror}): another broker "
        "may be running; GPU_ORCHESTRATOR_PORT or --port names another port"
    )
