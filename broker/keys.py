"""API keys: who may come in at the HTTP door, and as what.

A key is `gbk_` and 32 random bytes; kept is its SHA-256 alone, a line for each key:
`NAME ROLE SHA256 [AGENT,...]`, `#` begins a comment. Agents are names or patterns (`scout-*`).
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import tempfile
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent_sdk.settings import SdkSettings

Role: TypeAlias = Literal["viewer", "agent", "operator"]

ROLES: Final[tuple[Role, ...]] = ("viewer", "agent", "operator")
"""Each may do what those before it may, and more."""

PREFIX: Final = "gbk_"

NAME: Final = re.compile(r"[A-Za-z0-9._:@/-]{1,64}")

AGENTS: Final = re.compile(r"[A-Za-z0-9._:@/*?-]{1,128}")

DIGEST: Final = re.compile(r"[0-9a-f]{64}")

WRITABLE_BY_OTHERS: Final = 0o022


class KeysError(ValueError):
    """A key file, or a change of one, that cannot be."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Somebody with a key.

    Attributes:
        name: what leases and acts are written down under.
        agents: the agents it may ask for, as patterns; empty = any.
    """

    name: str
    role: Role
    digest: str
    agents: tuple[str, ...] = ()

    def is_at_least(self, role: Role) -> bool:
        """Whether it may do what that role may."""
        return ROLES.index(self.role) >= ROLES.index(role)

    def speaks_for(self, agent: str) -> bool:
        """Whether it may ask for a lease in that agent's name."""
        return not self.agents or any(fnmatchcase(agent, pattern) for pattern in self.agents)

    @property
    def line(self) -> str:
        """As a key file has it."""
        return " ".join(filter(None, (self.name, self.role, self.digest, ",".join(self.agents))))


ANYBODY: Final = Principal("", "operator", "")
"""Who comes in where there are no keys: only this machine can reach the port then."""


def new_key() -> str:
    """A key that nobody has had."""
    return PREFIX + secrets.token_urlsafe(32)


def digest_of(key: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def parse(lines: Iterable[str]) -> tuple[Principal, ...]:
    """The principals of a key file's lines.

    Raises:
        KeysError: a line is not one, or a name stands there twice; the message has its number.
    """
    found: dict[str, Principal] = {}
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        name, role, digest, agents, *more = [*words, "", "", ""][: max(4, len(words))]
        patterns = tuple(filter(None, agents.split(",")))
        if (
            more
            or not NAME.fullmatch(name)
            or role not in ROLES
            or not DIGEST.fullmatch(digest)
            or not all(AGENTS.fullmatch(pattern) for pattern in patterns)
        ):
            raise KeysError(f"line {number} of the keys is not NAME ROLE SHA256 [AGENT,...]")
        if name in found:
            raise KeysError(f"line {number} of the keys: there is a {name} already")
        found[name] = Principal(name, role, digest, patterns)
    return tuple(found.values())


class Keyring:
    """The keys of a broker. A file is read again when it changes: a revoked key opens nothing.

    Args:
        path: the key file; None or one that is not there = no file.
        inline: keys by the environment, joined by `;`, beside those of the file.

    Raises:
        KeysError: a line is wrong, or others may write the file.
    """

    def __init__(self, path: Path | None, inline: str = "") -> None:
        self._inline = parse(inline.split(";"))
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._principals = self._inline
        self._seen = False  # the file was there
        self._read()

    @property
    def locked(self) -> bool:
        """Whether nobody gets in without a key: keys were set up, be it that all are revoked.

        Looks at the file: the first key that is made locks a broker that runs.
        """
        try:
            self._read()
        except (KeysError, OSError):  # it is being edited, or gone: nobody of it gets in
            self._stamp, self._principals = None, self._inline
        return self._seen or bool(self._inline)

    def find(self, key: str) -> Principal | None:
        """Whose key it is, as `locked` last saw the file; each is compared in constant time."""
        digest, found = digest_of(key), None
        for principal in self._principals:
            if hmac.compare_digest(principal.digest, digest):
                found = principal
        return found

    def admits(self, principal: Principal) -> bool:
        """Whether who came in before may still be here."""
        return principal in self._principals if self.locked else principal == ANYBODY

    def _read(self) -> None:
        """Read the file if it has changed.

        Raises:
            FileNotFoundError: it was there.
        """
        if self._path is None:
            return
        try:
            stat = os.stat(self._path)  # noqa: PTH116 - at each request: a Path's takes twice as long
        except FileNotFoundError:
            if self._seen:
                raise
            return
        self._seen = True
        stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        if stamp != self._stamp:
            self._principals = (*self._inline, *read(self._path))
            self._stamp = stamp


def default_file(sdk: SdkSettings) -> Path:
    """Where the keys are unless GPU_BROKER_KEYS_FILE says otherwise."""
    return sdk.state_dir / "keys"


def read(path: Path) -> tuple[Principal, ...]:
    """The principals of a key file; none when it is not there.

    Raises:
        KeysError: a line is wrong, or others may write the file.
    """
    try:
        if path.stat().st_mode & WRITABLE_BY_OTHERS:
            raise KeysError(f"{path} may be written by others: chmod 600 {path}")
        return parse(path.read_text().splitlines())
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise KeysError(f"{path} cannot be read ({error.strerror}): whose is it?") from error


def add(path: Path, name: str, role: Role, agents: tuple[str, ...] = ()) -> str:
    """Make a key and keep its digest in the file; the key, which nobody can read again.

    Raises:
        KeysError: there is one of that name, or a name or pattern is none.
    """
    key = new_key()
    principal = Principal(name, role, digest_of(key), agents)
    _write(path, (*read(path), *parse([principal.line])))
    return key


def remove(path: Path, name: str) -> bool:
    """Take a principal out of the file; False when there was none of that name."""
    before = read(path)
    after = tuple(principal for principal in before if principal.name != name)
    if len(after) < len(before):
        _write(path, after)
    return len(after) < len(before)


def _write(path: Path, principals: tuple[Principal, ...]) -> None:
    """All or nothing, and readable by its owner alone."""
    text = "".join(f"{principal.line}\n" for principal in principals)
    parse(text.splitlines())  # a name that stands there twice is an error
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(
                "# NAME ROLE SHA256 [AGENT,...]; gpu-broker keys makes and ends them\n" + text
            )
            file.flush()
            os.fsync(file.fileno())
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
