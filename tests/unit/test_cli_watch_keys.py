"""`gpu-broker status -w` on a real terminal: q ends it, and the terminal is as it was."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import termios
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
import redis

from agent_sdk.testing import TestBroker, running_broker
from tests.api.brokers import PROGRAM, environment, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

LOCAL_MODES = 3

HIDDEN, SHOWN = b"\x1b[?25l", b"\x1b[?25h"
"""Escapes of a terminal for its cursor."""


@pytest.fixture(scope="module")
def pool() -> Iterator[TestBroker]:
    """Two devices on one host."""
    with running_broker() as broker:
        yield broker


class Watch:
    """`status -w` with a terminal of its own, whose foreground it is."""

    def __init__(self, pool: TestBroker) -> None:
        self.ours, self.theirs = pty.openpty()
        self.before = termios.tcgetattr(self.theirs)
        self.process = subprocess.Popen(
            [PROGRAM, "status", "-w"],
            env=environment(REDIS_URL=pool.url, TERM="xterm"),
            stdin=self.theirs, stdout=self.theirs, stderr=self.theirs, start_new_session=True,
            preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),  # noqa: PLW1509 - it becomes its terminal
        )  # fmt: skip
        self.said = b""
        os.set_blocking(self.ours, False)

    def shows(self, what: bytes) -> bool:
        """Return whether that was drawn by now."""
        with suppress(BlockingIOError):
            self.said += os.read(self.ours, 65536)
        return what in self.said

    def takes_single_keys(self) -> bool:
        """Return whether a key is sent without waiting for a line."""
        return not termios.tcgetattr(self.theirs)[LOCAL_MODES] & termios.ICANON

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        os.close(self.ours)
        os.close(self.theirs)


@pytest.fixture
def watch(pool: TestBroker) -> Iterator[Watch]:
    """One that has drawn."""
    watch = Watch(pool)
    try:
        eventually(lambda: watch.shows(b"Simulated GPU") and watch.takes_single_keys(), 20)
        yield watch
    finally:
        watch.end()


@pytest.mark.parametrize(
    ("keys", "number", "code"),
    [(b"xq", None, 0), (b"\x03", None, 0), (b"", signal.SIGTERM, 128 + signal.SIGTERM)],
)
def test_terminal_is_as_it_was_after_q_and_after_signals(
    watch: Watch, keys: bytes, number: int | None, code: int
) -> None:
    """Its modes, its screen and its cursor; another key does nothing."""
    assert HIDDEN in watch.said
    os.write(watch.ours, keys)
    if number is not None:
        watch.process.send_signal(number)
    assert watch.process.wait(10) == code
    eventually(lambda: watch.shows(SHOWN), 5)
    assert termios.tcgetattr(watch.theirs) == watch.before


def answers(pool: TestBroker) -> bool:
    with suppress(redis.TimeoutError):
        return bool(pool.client.redis.ping())
    return False


def test_keys_that_come_while_the_store_is_away_are_taken(watch: Watch, pool: TestBroker) -> None:
    """q ends it then too."""
    pool.client.redis.execute_command("CLIENT", "PAUSE", "3000", "ALL")
    os.write(watch.ours, b"q")
    assert watch.process.wait(15) == 0
    assert termios.tcgetattr(watch.theirs) == watch.before
    eventually(lambda: answers(pool), 60)  # for the next test
