"""Settings of the broker, all read here; those of the store are in `agent_sdk.settings`.

A setting with a wrong form stops the start with a sentence that names it and the way out.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    AliasChoices,
    BeforeValidator,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from agent_sdk.keys import HOST, POOL
from agent_sdk.settings import SdkSettings, Setting, read_settings, source_of
from agent_sdk.state.telemetry import MAX_MB
from agent_sdk.store.store import Store
from broker.api_keys import Keyring, default_file
from broker.hooks.addresses import SETTING, Addresses
from broker.key_file import read_text
from broker.mcp_terms import ALONE_GPUS, IDLE_RELEASE_S
from broker.path_prefix import PREFIX

REPORTS_BEFORE_AWAY = 3
"""Missed reports in a row after which a host takes no new leases."""


PORT: Final = 8014

SERVICE_LINK: Final = re.compile(r"(tcp|udp|sctp)://\S+:[0-9]+")
"""Address of a service called gpu-orchestrator, in GPU_ORCHESTRATOR_PORT of each pod beside it."""


class SettingsError(ValueError):
    """Error for settings that are impossible; the message has the way out."""


def _true_or_false(value: Any) -> Any:
    if isinstance(value, str) and value.lower() in {"true", "false"}:
        return value.lower() == "true"
    if value is None or isinstance(value, bool):
        return value
    raise ValueError("must be true or false, or unset")


def _no_service_link(value: Any) -> Any:
    """Return the default for the address of a service, which Kubernetes puts in its place."""
    if isinstance(value, str) and SERVICE_LINK.fullmatch(value):
        return PORT
    return value


Switch = Annotated[bool | None, BeforeValidator(_true_or_false)]
OnOrOff = Annotated[bool, BeforeValidator(_true_or_false)]


def _env(name: str) -> Any:
    return AliasChoices(name)


class Settings(BaseSettings):
    """Settings from the environment; an empty variable counts as unset."""

    # Only code sets fields by name: another program's PORT or DEVICES is not ours.
    model_config = SettingsConfigDict(
        env_ignore_empty=True, populate_by_name=True, frozen=True, env_prefix="GPU_BROKER_FIELD_"
    )

    port: Annotated[int, BeforeValidator(_no_service_link)] = Field(
        PORT, ge=1, le=65535, validation_alias=_env("GPU_ORCHESTRATOR_PORT")
    )
    """Port to listen on, set in this one place."""
    bind: str = Field("127.0.0.1", validation_alias=_env("GPU_ORCHESTRATOR_HOST"))
    """Address to listen on."""
    uds: Annotated[Path, AfterValidator(Path.absolute)] | None = Field(
        None, validation_alias=_env("GPU_BROKER_UDS")
    )
    """Path of a unix socket to listen on, in place of the port; None: the port."""
    uds_mode: str = Field(
        "0600", pattern="^0?[0-7]{3}$", validation_alias=_env("GPU_BROKER_UDS_MODE")
    )
    """Mode of that socket, in octal digits."""
    workers: int = Field(1, ge=1, le=64, validation_alias=_env("GPU_BROKER_WORKERS"))
    """Processes that answer on the port; one of them reports and reaps."""
    safe_mode: Switch = Field(None, validation_alias=_env("SAFE_MODE"))
    """SAFE_MODE of this broker; None: the pool's policy decides."""
    enable_nvml: Switch = Field(None, validation_alias=_env("ENABLE_NVML"))
    lease_ttl_s: int = Field(
        3600, ge=0, le=604800, validation_alias=_env("GPU_ORCHESTRATOR_LEASE_TTL")
    )
    """Seconds of a lease over HTTP that names no other ttl; 0 = no expiry."""
    devices: str = Field("auto", validation_alias=_env("GPU_BROKER_DEVICES"))
    """Device source: auto, nvml, smi, amd, none, sim:COUNTxMIB or scenario:FILE.yaml."""
    pcie: OnOrOff = Field(False, validation_alias=_env("GPU_BROKER_PCIE"))
    """Switch for asking NVML for the PCIe throughput of each GPU, every 30 s."""
    driver_wait_s: float | None = Field(
        None, ge=0.1, le=600, validation_alias=_env("GPU_BROKER_DRIVER_WAIT_S")
    )
    """Seconds after which a driver counts as silent; unset: 2 for NVML, 5 for nvidia-smi."""
    driver_most_s: float = Field(
        60.0, ge=0.1, le=600, validation_alias=_env("GPU_BROKER_DRIVER_MOST_S")
    )
    """Most seconds that a late answer of the driver is waited for; then nvidia-smi is ended."""
    nvml_library: str = Field("", validation_alias=_env("GPU_BROKER_NVML_LIBRARY"))
    """NVML's library or its folder, where the loader and the broker do not find it."""
    unified_memory_mb: int | None = Field(
        None, ge=0, le=MAX_MB, validation_alias=_env("GPU_BROKER_UNIFIED_MEMORY_MB")
    )
    """MiB of this machine's memory that its integrated GPUs may use; unset: all, 0: not told."""
    amd_root: Path = Field(Path("/"), validation_alias=_env("GPU_BROKER_AMD_ROOT"))
    """Folder with the kernel's files about AMD's GPUs: `sys`, `proc` and `dev`."""
    report_s: float = Field(5.0, ge=0.1, le=60, validation_alias=_env("GPU_BROKER_REPORT_S"))
    """Seconds between two reports of this host's devices."""
    processes: Literal["auto", "host", "none"] = Field(
        "auto", validation_alias=_env("GPU_BROKER_PROCESSES")
    )
    """Visibility of the driver's pids: auto checks, host trusts them, none ignores processes."""
    may_kill: OnOrOff = Field(False, validation_alias=_env("GPU_BROKER_MAY_KILL"))
    """Permission of this host's reporter to end processes, where the policy asks for it."""
    drain_on_stop_s: float = Field(
        0, ge=0, le=86400, validation_alias=_env("GPU_BROKER_DRAIN_ON_STOP_S")
    )
    """Most seconds that a clean stop waits for the leases on this host's devices; 0 = none."""
    metrics_devices: int = Field(1024, ge=0, validation_alias=_env("GPU_BROKER_METRICS_DEVICES"))
    """Most devices, and most hosts, with series of their own in the metrics."""
    hooks_allow: str = Field("", validation_alias=_env("GPU_BROKER_HOOKS_ALLOW"))
    """Networks and hosts that webhooks may reach beside public addresses, separated by commas."""
    hooks_give_up_s: float = Field(
        86400, ge=1, le=31_536_000, validation_alias=_env("GPU_BROKER_HOOKS_GIVE_UP_S")
    )
    """Seconds of nothing but failures after which a webhook is disabled."""
    keys_file: Path | None = Field(None, validation_alias=_env("GPU_BROKER_KEYS_FILE"))
    """File of the API keys; default `keys` in the state folder, if it is there."""
    keys: str = Field("", repr=False, validation_alias=_env("GPU_BROKER_KEYS"))
    """API keys, as lines of a key file joined by `;`."""
    log_format: Literal["text", "json"] = Field("text", validation_alias=_env("LOG_FORMAT"))
    """Form of the logs."""
    cors_origins: str = Field("", validation_alias=_env("GPU_BROKER_CORS_ORIGINS"))
    """Web origins with pages that may ask, separated by commas."""
    mcp: Literal["auto", "off"] = Field("auto", validation_alias=_env("GPU_BROKER_MCP"))
    """Switch of /mcp: auto answers there where the extra is installed."""
    mcp_idle_release_s: float = Field(
        IDLE_RELEASE_S, ge=1, le=604800, validation_alias=_env("GPU_BROKER_MCP_IDLE_RELEASE_S")
    )
    """Seconds of silence after which a lease of /mcp, or a place in the queue, is given up."""
    mcp_alone_gpus: int = Field(
        ALONE_GPUS, ge=0, le=64, validation_alias=_env("GPU_BROKER_MCP_ALONE_GPUS")
    )
    """Most GPUs of one request of /mcp without a person's word."""
    mcp_alone_mb: int = Field(0, ge=0, validation_alias=_env("GPU_BROKER_MCP_ALONE_MB"))
    """Most MiB of one request of /mcp without a person's word; 0: no limit."""
    root_path: str = Field("", validation_alias=_env("GPU_BROKER_ROOT_PATH"))
    """Path under which a reverse proxy serves this broker; empty = the proxy's own header."""
    sdk: SdkSettings = Field(default_factory=read_settings)
    """Settings of the store, the pool and this host's name."""

    @model_validator(mode="after")
    def _check_sdk(self) -> Self:
        """Check the SDK's settings at the start, not later."""
        if not POOL.fullmatch(self.sdk.pool):
            raise ValueError(f"GPU_BROKER_POOL={self.sdk.pool!r} is not 1-32 of a-z, 0-9 and '-'")
        if not HOST.fullmatch(self.sdk.hostname):
            raise ValueError(
                f"GPU_BROKER_HOSTNAME={self.sdk.hostname!r} is not 1-64 letters, digits, . _ -"
            )
        self.sdk.check_state_dir()
        try:
            # this reads the URL, and connects to no server yet
            Store(self.sdk.store_url).connect().close()
        except ValueError as error:
            raise ValueError(f"REDIS_URL={self.sdk.masked_url!r} is no store: {error}") from None
        return self

    @model_validator(mode="after")
    def _check_root_path(self) -> Self:
        if self.root_path and not PREFIX.fullmatch(self.root_path):
            raise ValueError(f"GPU_BROKER_ROOT_PATH={self.root_path!r} is no path like /gpu-broker")
        return self

    @model_validator(mode="after")
    def _check_keys(self) -> Self:
        if self.keys_file is not None and read_text(self.keys_file) is None:
            raise ValueError(
                f"GPU_BROKER_KEYS_FILE={str(self.keys_file)!r} is not there: gpu-broker keys new "
                "makes it"
            )
        self.keyring()
        return self

    @model_validator(mode="after")
    def _check_origins(self) -> Self:
        if {"*", "null"} & set(self.origins) and not self.keyring().locked:
            raise ValueError(
                f"GPU_BROKER_CORS_ORIGINS={self.cors_origins!r} lets every web page act as an "
                "operator, since there are no API keys: gpu-broker keys new NAME --role operator "
                "makes the first; or name the origins"
            )
        return self

    @model_validator(mode="after")
    def _check_hooks(self) -> Self:
        try:
            Addresses(self.hooks_allow)
        except ValueError as error:
            said = f"{SETTING}={self.hooks_allow!r}: {error}"
            raise ValueError(said) from None
        return self

    def keyring(self) -> Keyring:
        """Return the API keys.

        Raises:
            KeysError: a line is wrong, or the file cannot be trusted or read.
        """
        return Keyring(self.keys_file or default_file(self.sdk), self.keys)

    @property
    def origins(self) -> list[str]:
        """Web origins with pages that may ask."""
        return [origin.strip() for origin in self.cors_origins.split(",") if origin.strip()]

    @property
    def deadline_ms(self) -> int:
        """Milliseconds of silence after which a host's devices take no new leases."""
        return round(self.report_s * 1000 * REPORTS_BEFORE_AWAY)

    @property
    def new_pool_safe_mode(self) -> bool:
        """SAFE_MODE of a pool that this process creates: off only on the store of one machine."""
        return not self.sdk.embedded if self.safe_mode is None else self.safe_mode

    @property
    def loopback(self) -> bool:
        """True if only this machine can reach the port, or only this user the socket."""
        if self.uds is not None:
            return int(self.uds_mode, 8) & 0o077 == 0
        if self.bind == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.bind).is_loopback
        except ValueError:
            return False

    @property
    def answers_to_local_names(self) -> bool:
        """True if a request without a key must name this machine.

        A web page leads its reader's browser to a port, and no page leads one to a file.
        """
        return self.loopback and self.uds is None


class SystemdSettings(BaseSettings):
    """Variables that systemd sets for its services; see sd_notify(3)."""

    model_config = SettingsConfigDict(env_ignore_empty=True, frozen=True)

    notify_socket: str | None = None
    watchdog_usec: int | None = None
    watchdog_pid: int | None = None


def broker_settings_in_effect() -> list[Setting]:
    """Return the broker's own settings by the name of their variable.

    Raises:
        SettingsError: a setting has a form that it cannot have.
    """
    settings, found = load_settings(), []
    for name, field in Settings.model_fields.items():
        if isinstance(field.validation_alias, AliasChoices):
            variable = str(field.validation_alias.choices[0])
            value = getattr(settings, name)
            shown = "unset" if value in {None, ""} else "set" if name == "keys" else str(value)
            found.append(Setting(variable, shown, source_of(variable)))
    return found


def load_settings(**overrides: Any) -> Settings:
    """Return the settings of this process.

    Raises:
        SettingsError: a setting has a form that it cannot have.
    """
    try:
        return Settings(**overrides)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        said = first["msg"].removeprefix("Value error, ")
        at = f"{first['loc'][0]}={first['input']!r}: " if first["loc"] else ""
        raise SettingsError(at + said) from error
