"""API keys: the principals of the HTTP API, and their roles.

A key is `gbk_` and 32 random bytes; the file holds its SHA-256 alone, a line for each key:
`NAME ROLE SHA256 [AGENT,...] [team=TEAM]`, `#` begins a comment. Agents are names or patterns
(`scout-*`).
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from agent_sdk.errors import error_for
from agent_sdk.keys import TEAM
from agent_sdk.settings import keys_file, read_settings
from broker.key_file import KeysError, alone, read_text, replace

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from agent_sdk.settings import SdkSettings
    from agent_sdk.state.queue import WaiterStatus
    from agent_sdk.state.snapshot import LeaseStatus
    from agent_sdk.usage.history import FinishedLease

log = logging.getLogger(__name__)

Role: TypeAlias = Literal["viewer", "agent", "operator"]

ROLES: Final[tuple[Role, ...]] = ("viewer", "agent", "operator")
"""Roles; each may do all that those before it may, and more."""

PREFIX: Final = "gbk_"

NAME: Final = re.compile(r"[A-Za-z0-9._:@/-]{1,64}")

AGENTS: Final = re.compile(r"[A-Za-z0-9._:@/*?-]{1,128}")


TEAM_WORD: Final = "team="
"""Begin of the word of a line that names the key's team."""

DIGEST: Final = re.compile(r"[0-9a-f]{64}")

FORM: Final = "NAME ROLE SHA256 [AGENT,...] [team=TEAM]"

HEADER: Final = f"# {FORM}; gpu-broker keys makes and ends them"

GONE: Final = (
    "{path} is gone, and a running broker asks for its keys: no request passes; gpu-broker keys "
    "new makes a key, or start the broker anew: without the file it asks for none"
)


@dataclass(frozen=True, slots=True)
class Principal:
    """Holder of a key: a person or a program.

    Attributes:
        name: the name under which leases and acts are recorded.
        agents: the agents it may ask for, as patterns; empty = any.
        team: the team for which its leases count; empty = any that a request names.
    """

    name: str
    role: Role
    digest: str
    agents: tuple[str, ...] = ()
    team: str = ""

    def is_at_least(self, role: Role) -> bool:
        """Return whether this principal may do all that a role may."""
        return ROLES.index(self.role) >= ROLES.index(role)

    def speaks_for(self, agent: str) -> bool:
        """Return whether this principal may ask for a lease in an agent's name."""
        return not self.agents or any(fnmatchcase(agent, pattern) for pattern in self.agents)

    def team_for(self, asked: str | None) -> str:
        """Return the team for which a lease counts; empty: the default team.

        Raises:
            Denied: the request names another team than the key's.
        """
        if self.team and asked not in {None, self.team}:
            raise error_for("forbidden", OTHER_TEAM.format(own=self.team, asked=asked))
        return self.team or asked or ""

    @property
    def line(self) -> str:
        """Line of the key file."""
        team = self.team and TEAM_WORD + self.team
        said = (self.name, self.role, self.digest, ",".join(self.agents), team)
        return " ".join(filter(None, said))


UNUSABLE: Final = (
    "this broker cannot use its key file, so no key of it is accepted: its log has the reason, and "
    "gpu-broker doctor on its machine has the way out"
)
"""Answer to a request, which names no path."""

OTHER_TEAM: Final = (
    "this key is of the team {own} and may not ask for the team {asked}: leave `team` out, or use "
    "a key of that team"
)

ANYBODY: Final = Principal("", "operator", "")
"""Client where there are no keys: only this machine can reach the port then."""


def owns(who: Principal, what: LeaseStatus | WaiterStatus | FinishedLease) -> bool:
    """Return whether this principal may end, renew or see a lease or a wait."""
    return who.is_at_least("operator") or (bool(who.name) and what.owner == who.name)


def owner_of(who: Principal) -> str:
    """Return the owner required of a lease that this principal renews or ends; empty: any."""
    return "" if who.is_at_least("operator") else who.name


def new_key() -> str:
    """Return a new random key."""
    return PREFIX + secrets.token_urlsafe(32)


def digest_of(key: str) -> str:
    """Return the digest under which a key is recorded."""
    return hashlib.sha256(key.encode()).hexdigest()


def parse(lines: Iterable[str]) -> tuple[Principal, ...]:
    """Return the principals of a key file's lines.

    Raises:
        KeysError: a line has another form or repeats a name; the message has its number.
    """
    found: dict[str, Principal] = {}
    for number, line in enumerate(lines, 1):
        principal = _of_line(number, line)
        if principal is None:
            continue
        if principal.name in found:
            raise KeysError(f"line {number} of the keys: there is a {principal.name} already")
        found[principal.name] = principal
    return tuple(found.values())


def _of_line(number: int, line: str) -> Principal | None:
    """Return the principal of a line of a key file; None: it is empty, or a comment."""
    words = line.partition("#")[0].split()
    if not words:
        return None
    team = words.pop()[len(TEAM_WORD) :] if words[-1].startswith(TEAM_WORD) else None
    name, role, digest, agents, *more = [*words, "", "", "", ""][: max(4, len(words))]
    patterns = tuple(filter(None, agents.split(",")))
    if (
        more
        or not NAME.fullmatch(name)
        or role not in ROLES
        or not DIGEST.fullmatch(digest)
        or not all(AGENTS.fullmatch(pattern) for pattern in patterns)
        or (agents and not patterns)  # commas alone bound it to none, and would mean any
        or (team is not None and not TEAM.fullmatch(team))
    ):
        raise KeysError(f"line {number} of the keys is not {FORM}")
    return Principal(name, role, digest, patterns, team or "")


class Keyring:
    """Keys of a broker. A changed file is read again: a revoked key opens nothing.

    An untrusted or unreadable file admits no client by its keys.

    Args:
        path: the key file; None or a missing one = no file.
        inline: keys by the environment, joined by `;`, beside those of the file.

    Attributes:
        trouble: a sentence about an unusable file; empty: the file is fine.

    Raises:
        KeysError: a line is wrong, or the file cannot be trusted or read.
    """

    def __init__(self, path: Path | None, inline: str = "") -> None:
        self._inline = parse(inline.split(";"))
        self._path = path
        self._folder = os.path.dirname(path or "") or "."  # noqa: PTH120 - as in `_stamp`
        self._stamp: tuple[int, ...] | None = None
        self._principals = self._inline
        self._seen = False  # a file was there, or could not be looked for
        self.trouble = ""
        self._read()

    @property
    def locked(self) -> bool:
        """True if every request needs a key: keys were set up, even if all are revoked.

        Looks at the file: the first key locks a running broker.
        """
        try:
            self._read()
        except KeysError as error:
            self._stamp, self._principals = None, self._inline
            self._say(str(error))
        else:
            self._say("")
        return self._seen or bool(self._inline)

    def find(self, key: str) -> Principal | None:
        """Return the key's principal, as `locked` last saw the file; compare in constant time."""
        digest, found = digest_of(key), None
        for principal in self._principals:
            if hmac.compare_digest(principal.digest, digest):
                found = principal
        return found

    def admits(self, principal: Principal) -> bool:
        """Return whether a principal that was admitted before still is."""
        return principal in self._principals if self.locked else principal == ANYBODY

    def _read(self) -> None:
        """Read the file if it has changed.

        Raises:
            KeysError: it cannot be read or trusted, or has disappeared.
        """
        if self._path is None:
            return
        try:
            stamp = _stamp(self._path, self._folder)
        except FileNotFoundError:
            if self._seen:
                raise KeysError(GONE.format(path=self._path)) from None
            return
        except OSError:
            stamp = ()  # reading it gives the reason
        self._seen = True
        if stamp != self._stamp:
            self._principals = (*self._inline, *read(self._path))
            self._stamp = stamp

    def _say(self, trouble: str) -> None:
        """Log the file's problem when it changes."""
        if trouble != self.trouble:
            log.error("keys: %s", trouble) if trouble else log.info("keys: read again")
        self.trouble = trouble


def _stamp(path: Path, folder_path: str) -> tuple[int, ...]:
    """Return a stamp that changes with a file, its owner, its mode or its folder."""
    # Done for each request: a Path's stat takes twice as long.
    file, folder = os.stat(path), os.stat(folder_path)  # noqa: PTH116 - as above
    written = (file.st_mtime_ns, file.st_ctime_ns, file.st_size, file.st_ino)
    return (*written, folder.st_mode, folder.st_uid)


def default_file(sdk: SdkSettings) -> Path:
    """Return the path of the keys, used unless GPU_BROKER_KEYS_FILE names another."""
    return sdk.state_dir / "keys"


def key_file() -> Path:
    """Return the path at which a broker with this environment looks for its keys."""
    return keys_file() or default_file(read_settings())


def read(path: Path) -> tuple[Principal, ...]:
    """Return the principals of a key file; none without a file.

    Raises:
        KeysError: a line is wrong, or the file cannot be trusted or read.
    """
    return parse((read_text(path) or "").splitlines())


def add(path: Path, name: str, role: Role, agents: tuple[str, ...] = (), *, team: str = "") -> str:
    """Make a key, record its digest in the file, and return the key: it cannot be read again.

    Raises:
        KeysError: the name is taken, a name, pattern or team is invalid, or the file is unusable.
    """
    key = new_key()
    line = _checked(Principal(name, role, digest_of(key), agents, team)).line
    with alone(path) as where:
        before = read_text(path) or HEADER
        if name in {each.name for each in parse(before.splitlines())}:
            raise KeysError(f"there is a key called {name} already: revoke it, or choose a name")
        replace(where, f"{before.rstrip()}\n{line}\n")
    return key


def _checked(principal: Principal) -> Principal:
    """Return a principal whose line means it: a blank or a `#` in it would mean another one.

    Raises:
        KeysError: a name, a pattern or a team is invalid.
    """
    for what, words, form in (
        ("the name of a key", (principal.name,), NAME),
        ("an agent of a key", principal.agents, AGENTS),
        ("the team of a key", (principal.team,) * bool(principal.team), TEAM),
    ):
        for word in words:
            if not form.fullmatch(word):
                raise KeysError(f"{what} must match {form.pattern}, not {word!r:.80}")
    return principal


def remove(path: Path, name: str) -> bool:
    """Remove a principal from the file; return False when there was none of that name.

    Raises:
        KeysError: the file cannot be used.
    """
    if read_text(path) is None:
        return False
    with alone(path) as where:
        before = (read_text(path) or "").splitlines()
        found = [_of_line(number, line) for number, line in enumerate(before, 1)]
        pairs = zip(before, found, strict=True)
        after = [line for line, holder in pairs if holder is None or holder.name != name]
        if len(after) < len(before):
            replace(where, "".join(f"{line}\n" for line in after))
    return len(after) < len(before)
