"""Settings of the SDK from the environment, all read here.

| Variable | Default | Meaning |
|---|---|---|
| REDIS_URL | unset = the embedded store's socket | where the pool lives |
| GPU_BROKER_STATE_DIR | `$XDG_STATE_HOME/gpu-broker` | the embedded store's folder |
| GPU_BROKER_POOL | `default` | which pool |
| GPU_BROKER_HOSTNAME | the host's name | which host's devices are local |
| GPU_BROKER_TEAM | `default` | for which team's quota requests count |
| GPU_ORCHESTRATOR_URL | `http://localhost:8014` | where the HTTP client finds the broker |
| GPU_ORCHESTRATOR_POLICY_TTL | 30 | seconds for which the HTTP client believes a policy |
| GPU_BROKER_API_KEY | unset | the HTTP client's key |
| GPU_BROKER_API_KEY_FILE | unset | a file that has it |
| GPU_BROKER_KEYS_FILE | `keys` in the state folder | the broker's API keys |
| GPU_LEASE_TOKEN | unset | the lease that this process was started under |
"""

from __future__ import annotations

import logging
import os
import re
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from agent_sdk.keys import DEFAULT_TEAM
from agent_sdk.store.trusted_path import foreign_link

if TYPE_CHECKING:
    from collections.abc import Mapping

log = logging.getLogger(__name__)

ORCHESTRATOR_URL = "http://localhost:8014"

POLICY_TTL_S = 30.0

NO_HOME = Path("/nonexistent/gpu-broker")
"""State folder of a user without a home, such as a uid without a passwd entry."""


@dataclass(frozen=True, slots=True)
class SdkSettings:
    """Settings of the store, the pool and this machine's name."""

    redis_url: str | None = field(repr=False)
    state_dir: Path
    pool: str
    hostname: str
    cgroup: str = ""
    team: str = DEFAULT_TEAM

    @property
    def embedded(self) -> bool:
        """True when no server is named: the embedded store's socket is used."""
        return self.redis_url is None

    @property
    def store_url(self) -> str:
        """URL to connect to."""
        return self.redis_url or f"unix://{quote(str(self.state_dir / 'redis.sock'))}"

    def check_state_dir(self) -> None:
        """Refuse a folder of the embedded store into which another user may have led us.

        Root may use another user's folder, as an operator does, but no link of that user's.

        Raises:
            ValueError: the folder, or a link on the way to it, is another user's; or no URL can
                name it.
        """
        if not self.embedded:
            return
        if self.state_dir == NO_HOME:
            raise ValueError(
                "this user has no home folder for the embedded store: GPU_BROKER_STATE_DIR names "
                "a folder, REDIS_URL another store"
            )
        if not _is_utf8(self.state_dir):
            raise ValueError(
                f"the folder {str(self.state_dir)!a} of the embedded store is not named in UTF-8, "
                "which its URL must be: set GPU_BROKER_STATE_DIR to another"
            )
        try:
            why = foreign_link(self.state_dir)
            owner = self.state_dir.stat().st_uid
        except OSError:  # it is missing or closed to us: the call itself will tell
            return
        if not why and owner != os.geteuid() != 0:
            why = f"{self.state_dir} belongs to user {owner}, not to us ({os.geteuid()})"
        if why:
            raise ValueError(f"{why}: set GPU_BROKER_STATE_DIR to a folder of our own")

    @property
    def masked_url(self) -> str:
        """URL to show: without its password."""
        masked = re.sub(r"([?&][a-z_]*password=)[^&]*", r"\1***", self.store_url)
        # a socket's URL has no user, and may have @ in its path
        if not masked.startswith("unix:///"):
            masked = re.sub(r"^((?:[a-z+]+:/{1,2})?[^:/@]*):.*@", r"\1:***@", masked)
        return masked


def read_settings(environ: Mapping[str, str] | None = None) -> SdkSettings:
    """Read the SDK's settings; an empty variable counts as unset."""
    env = os.environ if environ is None else environ
    state_home = env.get("XDG_STATE_HOME") or "~/.local/state"
    state_dir = env.get("GPU_BROKER_STATE_DIR") or f"{state_home}/gpu-broker"
    return SdkSettings(
        redis_url=env.get("REDIS_URL") or None,
        state_dir=_whole(state_dir),
        pool=env.get("GPU_BROKER_POOL") or "default",
        hostname=own_hostname(env),
        cgroup=env.get("GPU_BROKER_CGROUP") or "",
        team=env.get("GPU_BROKER_TEAM") or DEFAULT_TEAM,
    )


def _whole(name: str) -> Path:
    """Return a folder by its whole path; `NO_HOME` where `~` stands for no known folder."""
    try:
        return Path(name).expanduser().absolute()
    except RuntimeError:
        return NO_HOME


def _is_utf8(path: Path) -> bool:
    """Tell whether a path is UTF-8; other bytes stand in it as lone surrogates."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def own_hostname(environ: Mapping[str, str] | None = None) -> str:
    """Return this machine's name among the hosts."""
    env = os.environ if environ is None else environ
    return env.get("GPU_BROKER_HOSTNAME") or socket.gethostname()


@dataclass(frozen=True, slots=True)
class OrchestratorSettings:
    """Settings of `GPUOrchestratorClient` from the environment.

    Attributes:
        configured: GPU_ORCHESTRATOR_URL is set: other supervisors of GPUs stay off.
        api_key: the key for a broker with keys.
    """

    url: str
    policy_ttl_s: float
    configured: bool
    api_key: str | None = field(default=None, repr=False)


def read_orchestrator_settings(environ: Mapping[str, str] | None = None) -> OrchestratorSettings:
    """Read the settings; a policy ttl in another form counts as unset, with a warning."""
    env = os.environ if environ is None else environ
    policy_ttl_s, said = POLICY_TTL_S, env.get("GPU_ORCHESTRATOR_POLICY_TTL")
    if said:
        try:
            policy_ttl_s = float(said)
        except ValueError:
            log.warning("GPU_ORCHESTRATOR_POLICY_TTL=%r is no number of seconds", said)
    url = env.get("GPU_ORCHESTRATOR_URL")
    key = env.get("GPU_BROKER_API_KEY") or _content(env.get("GPU_BROKER_API_KEY_FILE"))
    return OrchestratorSettings(url or ORCHESTRATOR_URL, policy_ttl_s, bool(url), key)


def _content(path: str | None) -> str | None:
    """Return a file's content, stripped; None, with a warning, if it is unreadable."""
    if not path:
        return None
    try:
        return Path(path).expanduser().read_text(encoding="utf-8").strip() or None
    except (OSError, ValueError, RuntimeError):  # the last: ~ of an unknown user
        log.warning("GPU_BROKER_API_KEY_FILE=%r cannot be read", path)
        return None


def keys_file(environ: Mapping[str, str] | None = None) -> Path | None:
    """Return the broker's key file, if the environment names one."""
    env = os.environ if environ is None else environ
    name = env.get("GPU_BROKER_KEYS_FILE")
    try:
        return Path(name).expanduser() if name else None
    except RuntimeError:  # ~ of an unknown user: a missing file is refused, no file would not be
        return Path(str(name))


def whole_environment() -> dict[str, str]:
    """Return a copy of the whole environment, for a command that we start."""
    return dict(os.environ)


def dumb_terminal(environ: Mapping[str, str] | None = None) -> bool:
    """Tell whether TERM names a terminal that prints escapes, like an editor's shell."""
    env = os.environ if environ is None else environ
    return env.get("TERM") == "dumb"


def lease_token(environ: Mapping[str, str] | None = None) -> str | None:
    """Return the lease under which this process was started, by `Lease.env`; else None."""
    env = os.environ if environ is None else environ
    return env.get("GPU_LEASE_TOKEN") or None


@dataclass(frozen=True, slots=True)
class Setting:
    """Setting in effect, for `gpu-broker doctor`; secrets are masked.

    Attributes:
        source: `environment` or `default`.
    """

    name: str
    value: str
    source: str


def source_of(name: str, environ: Mapping[str, str] | None = None) -> str:
    """Return the origin of a variable's value."""
    env = os.environ if environ is None else environ
    return "environment" if env.get(name) else "default"


def sdk_settings_in_effect(environ: Mapping[str, str] | None = None) -> list[Setting]:
    """Return the SDK's settings by the name of their variable."""
    env = os.environ if environ is None else environ
    settings, orchestrator = read_settings(env), read_orchestrator_settings(env)
    values = {
        "REDIS_URL": settings.masked_url,
        "GPU_BROKER_STATE_DIR": str(settings.state_dir),
        "GPU_BROKER_POOL": settings.pool,
        "GPU_BROKER_HOSTNAME": settings.hostname,
        "GPU_BROKER_CGROUP": settings.cgroup or "unset",
        "GPU_BROKER_TEAM": settings.team,
        "GPU_ORCHESTRATOR_URL": orchestrator.url,
        "GPU_ORCHESTRATOR_POLICY_TTL": f"{orchestrator.policy_ttl_s:g}",
        "GPU_BROKER_API_KEY": "set" if env.get("GPU_BROKER_API_KEY") else "unset",
        "GPU_BROKER_API_KEY_FILE": env.get("GPU_BROKER_API_KEY_FILE") or "unset",
    }
    return [Setting(name, value, source_of(name, env)) for name, value in values.items()]
