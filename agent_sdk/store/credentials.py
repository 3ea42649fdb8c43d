"""Credentials that are read again for each connection: a rotated password needs no restart."""

from __future__ import annotations

from pathlib import Path

from redis.credentials import CredentialProvider
from redis.exceptions import ConnectionError as RedisConnectionError

from agent_sdk.store.connect_errors import mark_unsent


class PasswordFile(CredentialProvider):
    """Password of a file's present content, without the line's end.

    Standing connections need no new one: Redis lets them go on when a password changes.

    Args:
        path: the file, as secrets are mounted.
        username: the user of the password; None: the default user's.
    """

    def __init__(self, path: str, username: str | None = None) -> None:
        self._path = path
        self._username = username

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """Read the file.

        Raises:
            ConnectionError: the file cannot be read, or is empty; the next try reads it again.
        """
        try:
            password = Path(self._path).expanduser().read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, ValueError, RuntimeError) as error:  # the last: ~ of an unknown user
            raise self._unreadable(type(error).__name__) from None
        if not password:
            raise self._unreadable("it is empty")
        return (self._username, password) if self._username else (password,)

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        """Read the file; redis-py's own way to do it would log a warning at each connect."""
        return self.get_credentials()

    def _unreadable(self, why: str) -> RedisConnectionError:
        error = RedisConnectionError(
            f"not connecting: the file of password_file, {self._path}, cannot be read ({why})"
        )
        mark_unsent(error)
        return error


def file_version(path: str | None) -> object:
    """Return a value that changes when a file is replaced or written; None: it is unreadable."""
    if path is None:
        return None
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
