"""Work of `gpu-broker serve`: a store, a socket, a broker or several."""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import uvicorn

from agent_sdk.settings import read_settings
from agent_sdk.store.embedded import EmbeddedStore
from agent_sdk.store.server_binary import EmbeddedError
from broker import logs
from broker.cli import UNAVAILABLE, USAGE
from broker.cli.banner import banner
from broker.cli.serving.hangup import stop_at_hangup
from broker.cli.serving.listener import listening
from broker.devices import DeviceSourceError
from broker.http.connection_limits import ConnectionLimits, room
from broker.http.slow_clients import DeadlineProtocol
from broker.maintenance.store_supervisor import kept
from broker.reporter import source_of
from broker.settings import Settings, SettingsError, load_settings
from broker.text.screen import say
from broker.worker import Worker, WorkerPlace, end_with_parent
from broker.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from fastapi import FastAPI

DEMO_DEVICES = "sim:2x24576"

STOP_S = 5
"""Most seconds that open connections may delay a stop."""

SPARE_S = 5
"""Seconds more that a worker may take to stop."""


def serve(*, demo: bool, insecure: bool, at: str | None, **said: Any) -> None:
    """Serve until a signal ends it; a wrong start ends the process with a sentence.

    Args:
        demo: use the embedded store, and simulated devices if there are none.
        insecure: listen beyond this machine without API keys.
        at: the place of a worker.
        said: settings of the command line; None where it says nothing.
    """
    given = {name: value for name, value in said.items() if value is not None}
    place = WorkerPlace.of(at) if at else None
    taken = ExitStack()
    try:
        _check_one_place(given)
        settings = load_settings(**given)
        if demo:
            settings = _for_demo(settings)
        _check_reach(settings, insecure=insecure)
        source = source_of(settings).name
        listener = (
            socket.socket(fileno=place.listener)
            if place
            else taken.enter_context(listening(settings))
        )
    except (SettingsError, DeviceSourceError) as error:
        say(f"gpu-broker serve: {error}", err=True)
        sys.exit(USAGE)

    def announce() -> None:
        ignored = demo and read_settings().redis_url is not None
        say(banner(settings, source, demo=demo, ignored_url=ignored))
        sys.stdout.flush()

    worker = Worker(place)
    number = {"worker": str(worker.number)} if worker.number else {}
    logs.configure(settings.log_format, replica=worker.replica, **number)
    # uvicorn stops in good order, and then raises the signal once more for the earlier handler.
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, _stopped)
    stop_at_hangup()
    try:
        if place:
            end_with_parent(place)
            _answer(settings, listener, place.store_began_anew, lambda: None, worker)
            return
        with taken, _store(settings) as anew:
            if settings.workers == 1:
                _answer(settings, listener, anew, announce, worker)
            else:
                sys.exit(_lead(settings, listener, anew, announce, worker.replica))
    except EmbeddedError as error:
        say(f"gpu-broker serve: {error}", err=True)
        sys.exit(UNAVAILABLE)


def _answer(
    settings: Settings,
    listener: socket.socket,
    store_began_anew: bool,
    announce: Callable[[], None],
    worker: Worker,
) -> None:
    """Serve in this process."""
    # Most of the start's time, which a wrong start and the parent of workers do without.
    from broker.app import build_app  # noqa: PLC0415 - see above

    app = build_app(settings, worker)
    app.state.crowd = ConnectionLimits(room())
    app.state.store_began_anew = store_began_anew
    config = uvicorn.Config(
        app,
        http=DeadlineProtocol,
        log_config=None,
        log_level="error",  # its warnings quote foreign input, a line for each
        access_log=False,
        timeout_graceful_shutdown=STOP_S,
        timeout_keep_alive=5,
    )
    Server(config, app, announce).run(sockets=[listener])


def _lead(
    settings: Settings,
    listener: socket.socket,
    store_began_anew: bool,
    announce: Callable[[], None],
    replica: str,
) -> int:
    """Serve in processes of their own; return the exit code."""
    gc.enable()
    life, ours = os.pipe()
    with tempfile.TemporaryDirectory(prefix="gpu-broker-") as folder:
        place = WorkerPlace(
            number=1,
            folder=folder,
            replica=replica,
            started=time.monotonic(),
            anew=False,
            store_began_anew=store_began_anew,
            listener=listener.fileno(),
            life=life,
        )
        stop_s = STOP_S + settings.drain_on_stop_s + SPARE_S
        try:
            return Workers(settings.workers, place, stop_s, announce).run()
        finally:
            os.close(ours)


@contextmanager
def _store(settings: Settings) -> Iterator[bool]:
    """Provide the embedded store while we serve; the last process that leaves it ends it.

    The block gets whether the store has begun without data that could not be read.
    """
    if not settings.sdk.embedded:
        yield False
        return
    store = EmbeddedStore(settings.sdk.state_dir)
    with kept(store):
        yield store.began_anew


class Server(uvicorn.Server):
    """uvicorn's server, with an announcement of its start and of its stop.

    Args:
        config: uvicorn's own.
        app: told of the stop before the server waits for open requests.
        announce: called once, after a start that succeeded.
    """

    def __init__(self, config: uvicorn.Config, app: FastAPI, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._state = app.state
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then announce it."""
        await super().startup(sockets)
        if self.started:
            self._announce()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer the requests that wait for a lease first: they may wait for a minute."""
        self._state.broker.stopping.set()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop at a signal; a second one ends the wait for leases."""
        if self.should_exit:
            self._state.hurried = True
            if draining := getattr(self._state, "draining", None):
                draining.get_loop().call_soon_threadsafe(draining.cancel)
        super().handle_exit(sig, frame)


def _stopped(*_: object) -> None:
    sys.exit(0)


def _check_one_place(given: dict[str, Any]) -> None:
    if "uds" in given and given.keys() & {"bind", "port"}:
        raise SettingsError("--uds is in place of --host and --port: give one or the other")


def _check_reach(settings: Settings, *, insecure: bool) -> None:
    if settings.loopback or insecure or settings.keyring().locked:
        return
    if settings.uds is not None:
        raise SettingsError(
            f"a socket of mode {settings.uds_mode} lets other users of this machine end leases, "
            "and there are no API keys: gpu-broker keys new NAME --role operator makes the first; "
            "or leave GPU_BROKER_UDS_MODE at 0600, or pass --insecure to take the risk"
        )
    raise SettingsError(
        f"listening on {settings.bind} lets every machine that reaches it end leases, and there "
        "are no API keys: gpu-broker keys new NAME --role operator makes the first; or listen on "
        "127.0.0.1, or pass --insecure to take the risk"
    )


def _for_demo(settings: Settings) -> Settings:
    """Return settings for the embedded store, and for simulated devices if no real ones exist.

    REDIS_URL is not used.
    """
    sdk = replace(settings.sdk, redis_url=None)
    settings = settings.model_copy(update={"sdk": sdk})
    if settings.devices == "auto" and source_of(settings).name == "none":
        settings = settings.model_copy(update={"devices": DEMO_DEVICES})
    return settings
