"""A picture of the pool that is drawn anew when something happens."""

from __future__ import annotations

import shutil
import signal
import sys
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

import click
from redis.exceptions import RedisError

from agent_sdk.errors import LeaseError
from broker.cli.follow import Follower
from broker.cli.table import age

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent_sdk import LeaseClient
    from agent_sdk.scene import Scene

ENTER, LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
"""To the terminal's other screen, without a cursor, and back."""

HOME, END_OF_LINE, END_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"

RETRY_S: Final = 0.5

PAUSE_S: Final = 0.1
"""Between two pictures at least: a busy pool is drawn ten times a second."""


def watch(client: LeaseClient, every_s: float, picture: Callable[[Scene], str]) -> None:
    """Draw until Ctrl-C: at once when something happens, and every so many seconds.

    On a terminal in place, else below each other. Without the store the last picture stays, and
    says how old it is.
    """
    live = sys.stdout.isatty()
    with _screen() if live else _plain() as draw, Follower(client) as follower:
        seen, seen_at = "", time.monotonic()
        while True:
            try:
                seen, seen_at = picture(client.scene()), time.monotonic()
                draw(seen)
                _until_news(follower, every_s)
            except (RedisError, LeaseError) as error:
                old = age(round((time.monotonic() - seen_at) * 1000))
                draw(f"{click.style(f'disconnected, {old} old: {error}', fg='red')}\n\n{seen}")
                time.sleep(RETRY_S)


def _until_news(follower: Follower, seconds: float) -> None:
    until = time.monotonic() + seconds
    time.sleep(min(PAUSE_S, seconds))
    while (left_s := until - time.monotonic()) > 0:
        news = follower.wait(left_s)
        if news.events or news.gap:
            return


@contextmanager
def _screen() -> Iterator[Callable[[str], None]]:
    """Draws in place; whatever ends it, the terminal is as it was."""

    def draw(text: str) -> None:
        lines = (click.unstyle(text) if colourless else text).splitlines()
        room = shutil.get_terminal_size().lines - 1
        if len(lines) > room:
            lines = [*lines[: room - 1], f"… {len(lines) - room + 1} more lines"]
        shown = "".join(f"{line}{END_OF_LINE}\n" for line in lines)
        sys.stdout.write(f"{HOME}{shown}{END_OF_SCREEN}")
        sys.stdout.flush()

    colourless = click.get_current_context().color is False
    before = signal.signal(signal.SIGTERM, _stopped)
    sys.stdout.write(ENTER)
    try:
        yield draw
    except KeyboardInterrupt:
        pass
    finally:
        sys.stdout.write(LEAVE)
        sys.stdout.flush()
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _plain() -> Iterator[Callable[[str], None]]:
    """Prints one below the other, unless nothing has changed."""
    last = ""

    def draw(text: str) -> None:
        nonlocal last
        if text != last:
            click.echo(text)
            sys.stdout.flush()
        last = text

    with suppress(KeyboardInterrupt):
        yield draw


def _stopped(*_: object) -> None:
    sys.exit(128 + signal.SIGTERM)
