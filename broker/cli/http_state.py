"""Findings of `gpu-broker doctor` about HTTP: the service at the URL, and its pool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from agent_sdk.clock import local_now
from agent_sdk.http_request import Unanswered, Web
from agent_sdk.settings import read_orchestrator_settings, read_settings
from broker import __version__
from broker.cli.finding import Diagnosis

if TYPE_CHECKING:
    from agent_sdk.http_request import Reply

ASK_S: Final = 2.0

OK: Final = 200

HERE: Final = {"localhost", "127.0.0.1", "::1"}


def http_state(pool_id: str) -> tuple[str, list[Diagnosis]]:
    """Return the service at the broker's URL, with findings if it is no broker of this pool.

    Args:
        pool_id: of the pool in the store; empty: it could not be read.
    """
    url, asked = broker_url(), read_orchestrator_settings().configured
    try:
        reply = Web(url).ask("GET", "/health", until=local_now() + ASK_S)
    except (Unanswered, ValueError) as error:
        said = f"no broker answers at {url} ({error})"
        way_out = "start gpu-broker serve there, or correct GPU_ORCHESTRATOR_URL"
        found = [Diagnosis(said, way_out)] if asked else []
        said += "; clients of the store need none"
    else:
        said, found = _answered(url, reply, pool_id, asked=asked)
    if asked and found:
        found += _compared(url, _own_port())
    return said, found


def broker_url() -> str:
    """Return the URL of this environment's HTTP clients, or else of a broker of it."""
    orchestrator = read_orchestrator_settings()
    port = _own_port()
    if orchestrator.configured or port is None:
        return orchestrator.url
    return f"http://localhost:{port}"


def _own_port() -> int | None:
    """Return the port on which a broker with this environment listens; None: it would not start."""
    try:
        from broker.settings import SettingsError, load_settings  # noqa: PLC0415 - an extra has it
    except ModuleNotFoundError:
        return None
    try:
        # A key file that is named and gone is a problem that we are here to explain.
        return load_settings(keys_file=None).port
    except SettingsError:
        return None


def _compared(url: str, port: int | None) -> list[Diagnosis]:
    """Return findings about a URL of clients with another port than this environment's broker."""
    try:
        parts = urlsplit(url)
        asked = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        return [Diagnosis(f"GPU_ORCHESTRATOR_URL={url} is no URL", "correct it or unset it")]
    if port is None or parts.hostname not in HERE or asked == port:
        return []
    return [
        Diagnosis(
            f"clients ask at port {asked} (GPU_ORCHESTRATOR_URL), and a broker started here "
            f"listens on port {port} (GPU_ORCHESTRATOR_PORT)",
            "set both to one port",
        )
    ]


def _answered(url: str, reply: Reply, pool_id: str, *, asked: bool) -> tuple[str, list[Diagnosis]]:
    """Return findings from the answer of /health."""
    version, pool = reply.body.get("version"), reply.body.get("pool")
    if reply.status != OK or version is None or pool is None:
        said = f"what answers at {url} is no broker of this version (status {reply.status})"
        way_out = "give gpu-broker serve a port of its own: GPU_ORCHESTRATOR_PORT or --port"
        return said, [Diagnosis(said, way_out)]
    said = f"a broker {version} answers at {url}, of pool {pool}"
    mine = read_settings().pool
    other = pool != mine or (bool(pool_id) and reply.body.get("pool_id") not in {pool_id, None})
    findings = []
    if other and asked:
        of = f"pool {pool}" if pool != mine else f"another store's pool {pool}"
        findings.append(
            Diagnosis(
                f"the broker at {url} is of {of}, and the store here has pool {mine}",
                "let both name one pool: REDIS_URL, GPU_BROKER_POOL, GPU_ORCHESTRATOR_URL",
            )
        )
    if version != __version__:
        way_out = f"upgrade the older: this command is {__version__}"
        findings.append(Diagnosis(f"the broker at {url} is {version}", way_out))
    return f"{said}{' (another one)' if other else ''}", findings
