"""Banner of `gpu-broker serve`: its address, store, devices and mode, and things to try."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from broker.settings import Settings

DEMO_MB: Final = 8192
"""MiB of the lease that the banner suggests."""


def banner(settings: Settings, source: str, *, demo: bool, ignored_url: bool = False) -> str:
    """Return the description of a running broker, with things to try.

    Args:
        settings: the settings in effect.
        source: the name of the device source in use.
        demo: name the things to try.
        ignored_url: REDIS_URL is set, but `--demo` uses the embedded store.
    """
    base = base_url(settings)
    lines = [
        f"gpu-broker on {base if settings.uds is None else settings.uds}",
        f"  store    {_store(settings, ignored_url=ignored_url)}",
        f"  devices  {_devices(settings, source)}",
        f"  mode     {_mode(settings)}",
        f"  see it   {_seen(settings, base)}, or gpu-broker status -w",
    ]
    if settings.keyring().locked:
        lines.append("  reach    with an API key alone: gpu-broker keys list")
    elif not settings.loopback:
        where = "port" if settings.uds is None else "socket"
        lines.append(
            f"  reach    INSECURE: no API keys, every client of this {where} can end leases"
        )
    if demo:
        lines += ["", *_things_to_try(base, curl(settings), ignored_url=ignored_url)]
    return "\n".join(lines)


def base_url(settings: Settings) -> str:
    """Return the URL at which this broker answers; on a unix socket any host's name will do."""
    if settings.uds is not None:
        return "http://localhost"
    host = f"[{settings.bind}]" if ":" in settings.bind else settings.bind
    return f"http://{'localhost' if settings.loopback else host}:{settings.port}"


def curl(settings: Settings) -> str:
    """Return the beginning of a call of curl."""
    at = "" if settings.uds is None else f" --unix-socket {shlex.quote(str(settings.uds))}"
    key = ' -H "Authorization: Bearer $GPU_BROKER_API_KEY"' if settings.keyring().locked else ""
    return f"curl -s{at}{key}"


def _seen(settings: Settings, base: str) -> str:
    return f"{base} in a browser" if settings.uds is None else f"{curl(settings)} {base}/gpu/info"


def _store(settings: Settings, *, ignored_url: bool) -> str:
    pool = f"pool {settings.sdk.pool}"
    if not settings.sdk.embedded:
        return f"{settings.sdk.masked_url} (REDIS_URL), {pool}"
    unused = "; --demo does not use REDIS_URL" if ignored_url else ""
    return f"embedded, {settings.sdk.state_dir / 'redis.sock'}, {pool}{unused}"


def _devices(settings: Settings, source: str) -> str:
    if settings.devices.startswith("sim:"):
        return f"SIMULATED, {settings.devices}: no GPU is touched, leases are real"
    if settings.devices.startswith("scenario:"):
        return f"SCRIPTED, {settings.devices}: no GPU is touched, leases are real"
    if source == "none":
        return "none on this machine; GPU_BROKER_DEVICES=sim:2x24576 simulates two"
    return f"{source} on host {settings.sdk.hostname}"


def _mode(settings: Settings) -> str:
    if settings.safe_mode is None:
        return "SAFE_MODE as the pool's policy says (a new pool: " + (
            "on; gpu-broker policy set safe_mode=false switches it off)"
            if settings.new_pool_safe_mode
            else "off, the store is this machine's own)"
        )
    if settings.safe_mode:
        return "SAFE_MODE on, from the environment: no GPU leases; SAFE_MODE=false switches it off"
    return "SAFE_MODE off, from the environment"


def _things_to_try(base: str, by_hand: str, *, ignored_url: bool) -> list[str]:
    """Return the numbered commands of a first visit: look, take a lease, see it, give it back."""
    program = f"{'env -u REDIS_URL ' if ignored_url else ''}{program_here()}"
    post = f"{by_hand} -H 'Content-Type: application/json' {base}"
    return [
        "Try, in another terminal:",
        f"  1. {by_hand} {base}/gpu/info",
        f"  2. {program} run --memory 8GiB -- sh -c 'echo on $CUDA_VISIBLE_DEVICES; sleep 5'",
        f"  3. {post}/lease \\",
        f"""       -d '{{"agent": "me", "min_memory_mb": {DEMO_MB}}}'""",
        f"  4. {program} status",
        f"""  5. {post}/release -d '{{"token": "TOKEN"}}'""",
        "",
        "The second ends its lease with its command. The third leaves a lease for an hour, unless",
        "it is renewed: the fifth gives it back, with the token that the third printed.",
        "Ctrl-C here ends the broker; its leases stay in the store until they end.",
    ]


def program_here() -> str:
    """Return the command that starts this program in another terminal of this folder."""
    called = Path(sys.argv[0])
    found = shutil.which(called.name)
    if found and Path(found).resolve() == called.resolve():
        return called.name
    here = called.absolute()
    return str(here.relative_to(Path.cwd())) if here.is_relative_to(Path.cwd()) else str(here)
