"""Supervision of the embedded store: it lives for as long as a broker serves."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from agent_sdk.store.server_binary import EmbeddedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent_sdk.store.embedded import EmbeddedStore

log = logging.getLogger(__name__)

LOOK_S: Final = 0.25

AGAIN_S: Final = 2.0
"""Seconds of pause after a failed start."""


@contextmanager
def kept(store: EmbeddedStore) -> Iterator[None]:
    """Start or join the store for the length of a block, and restart it whenever it dies.

    A thread of its own looks, independent of a busy event loop. Of several brokers on one store
    the first that notices restarts it.

    Raises:
        EmbeddedError: the store cannot be started, joined or left.
    """
    store.start_or_join()
    stop = threading.Event()
    keeper = threading.Thread(target=_keep, args=(store, stop), name="store-keeper", daemon=True)
    keeper.start()
    try:
        yield
    finally:
        stop.set()
        keeper.join()
        store.leave()


def _keep(store: EmbeddedStore, stop: threading.Event) -> None:
    said, pause_s = "", LOOK_S
    while not stop.wait(pause_s):
        pause_s = LOOK_S
        if not store.refuses():
            continue
        began = time.monotonic()
        try:
            started = store.start_or_join()
        except EmbeddedError as error:
            pause_s = AGAIN_S
            if str(error) != said:
                log.error("%s", error)  # noqa: TRY400 - the message has it all
            said = str(error)
            continue
        said = ""
        if started:
            took_s = time.monotonic() - began
            log.warning("the embedded store had died: it was started anew in %.1f s", took_s)
