"""What the SDK takes from the environment, read in this one place.

| Variable | Default | Meaning |
|---|---|---|
| REDIS_URL | unset = the embedded store's socket | where the pool lives |
| GPU_BROKER_STATE_DIR | `$XDG_STATE_HOME/gpu-broker` | the embedded store's folder |
| GPU_BROKER_POOL | `default` | which pool |
| GPU_BROKER_HOSTNAME | the host's name | which host's devices are local |
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

from agent_sdk.store.trusted_path import foreign_link

if TYPE_CHECKING:
    from collections.abc import Mapping

log = logging.getLogger(__name__)

ORCHESTRATOR_URL = "http://localhost:8014"

POLICY_TTL_S = 30.0

NO_HOME = Path("/nonexistent/gpu-broker")
"""The state folder of a user without a home, as uids without a passwd entry are."""


@dataclass(frozen=True, slots=True)
class SdkSettings:
    """Where the store is, which pool, and what this machine is called."""

    redis_url: str | None = field(repr=False)
    state_dir: Path
    pool: str
    hostname: str

    @property
    def embedded(self) -> bool:
        """True when no server is named: the embedded store's socket is used."""
        return self.redis_url is None

    @property
    def store_url(self) -> str:
        """The URL to connect to."""
        return self.redis_url or f"unix://{quote(str(self.state_dir / 'redis.sock'))}"

    def check_state_dir(self) -> None:
        """Refuse the embedded store of a folder into which another user may have led us.

        Root may use another user's folder, as an operator does; no link of that user's, though.

        Raises:
            ValueError: the folder is another user's, or so is a link on the way to it; or no URL
                can name it.
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
        except OSError:  # it is not there, or not to be entered: the call itself will say so
            return
        if not why and owner != os.geteuid() != 0:
            why = f"{self.state_dir} belongs to user {owner}, not to us ({os.geteuid()})"
        if why:
            raise ValueError(f"{why}: set GPU_BROKER_STATE_DIR to a folder of our own")

    @property
    def masked_url(self) -> str:
        """The URL to show: without its password."""
        masked = re.sub(r"([?&][a-z_]*password=)[^&]*", r"\1***", self.store_url)
        if not masked.startswith("unix:///"):  # which has no user, and may have @ in its path
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
    )


def _whole(name: str) -> Path:
    """Return a folder by its whole path; `NO_HOME` where `~` stands for no folder that is known."""
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
    """Return what this machine is called among the hosts."""
    env = os.environ if environ is None else environ
    return env.get("GPU_BROKER_HOSTNAME") or socket.gethostname()


@dataclass(frozen=True, slots=True)
class OrchestratorSettings:
    """What `GPUOrchestratorClient` takes from the environment.

    Attributes:
        configured: GPU_ORCHESTRATOR_URL is set: whoever else would watch over GPUs stays off.
        api_key: for a broker that has keys.
    """

    url: str
    policy_ttl_s: float
    configured: bool
    api_key: str | None = field(default=None, repr=False)


def read_orchestrator_settings(environ: Mapping[str, str] | None = None) -> OrchestratorSettings:
    """Read them; a policy ttl that is no number of seconds counts as unset, with a warning."""
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
    """Return what a file holds, stripped; None, with a warning, if it cannot be read."""
    if not path:
        return None
    try:
        return Path(path).expanduser().read_text(encoding="utf-8").strip() or None
    except (OSError, ValueError, RuntimeError):  # the last: ~ of nobody
        log.warning("GPU_BROKER_API_KEY_FILE=%r cannot be read", path)
        return None


def keys_file(environ: Mapping[str, str] | None = None) -> Path | None:
    """Return the broker's key file, if the environment names one."""
    env = os.environ if environ is None else environ
    name = env.get("GPU_BROKER_KEYS_FILE")
    try:
        return Path(name).expanduser() if name else None
    except (
        RuntimeError
    ):  # ~ of an unknown user: a file that is not there is refused, none would not be
        return Path(str(name))


def whole_environment() -> dict[str, str]:
    """Return a copy of all of it, for a command that we start."""
    return dict(os.environ)


def dumb_terminal(environ: Mapping[str, str] | None = None) -> bool:
    """Tell whether TERM names a terminal that shows escapes as they are, like an editor's shell."""
    env = os.environ if environ is None else environ
    return env.get("TERM") == "dumb"


def lease_token(environ: Mapping[str, str] | None = None) -> str | None:
    """The lease under which this process was started, as `Lease.env` says it; None: under none."""
    env = os.environ if environ is None else environ
    return env.get("GPU_LEASE_TOKEN") or None


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting as it is in effect, for `gpu-broker doctor`; secrets are masked.

    Attributes:
        source: `environment` or `default`.
    """

    name: str
    value: str
    source: str


def source_of(name: str, environ: Mapping[str, str] | None = None) -> str:
    """Return where a variable's value comes from."""
    env = os.environ if environ is None else environ
    return "environment" if env.get(name) else "default"


def sdk_settings_in_effect(environ: Mapping[str, str] | None = None) -> list[Setting]:
    """Return the SDK's settings by the name of their variable."""
    settings, orchestrator = read_settings(environ), read_orchestrator_settings(environ)
    values = {
        "REDIS_URL": settings.masked_url,
        "GPU_BROKER_STATE_DIR": str(settings.state_dir),
        "GPU_BROKER_POOL": settings.pool,
        "GPU_BROKER_HOSTNAME": settings.hostname,
        "GPU_ORCHESTRATOR_URL": orchestrator.url,
        "GPU_ORCHESTRATOR_POLICY_TTL": f"{orchestrator.policy_ttl_s:g}",
        "GPU_BROKER_API_KEY": "unset" if orchestrator.api_key is None else "set",
    }
    return [Setting(name, value, source_of(name, environ)) for name, value in values.items()]
