"""Live picture of the pool, drawn anew after each event."""

from __future__ import annotations

import shutil
import signal
import sys
import time
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Final

import click

from agent_sdk.errors import Denied, LeaseError
from agent_sdk.settings import dumb_terminal
from broker.cli.follow import Follower, last_of
from broker.cli.keyboard import Keyboard, keyboard
from broker.text.screen import draw_screen, enter_screen, leave_screen, paint, say
from broker.text.table import age, cut

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from agent_sdk import LeaseClient

    Draw = Callable[[str, str], None]

RETRY_S: Final = 0.5

PAUSE_S: Final = 0.1
"""Least seconds between two pictures: a busy pool is drawn ten times a second."""


QUIT: Final = "q"

KEY_S: Final = 0.25
"""Most seconds until a key is noticed."""


def watch(client: LeaseClient, every_s: float, picture: Callable[[], str], *, lines: bool) -> None:
    """Draw until q or Ctrl-C: at once after an event, and every `every_s` seconds.

    On a terminal pictures are drawn in place, elsewhere below each other; `lines`: always as lines.
    Without the store the last picture stays, with its age.

    Raises:
        LeaseError: the store is away at the start, or denies the call.
    """
    # The stream's end before the first picture: later events are news.
    after = last_of(client.events(1))
    live = not lines and sys.stdout.isatty() and not dumb_terminal()
    screen = _screen() if live else _plain(timed=not lines)
    with screen as draw, _keys(live=live) as keys, Follower(client, after) as news:
        seen, seen_at = "", time.monotonic()
        while True:
            try:
                seen, seen_at = picture(), time.monotonic()
                draw(seen, "")
                if _until_news(news, keys, every_s):
                    return
            except Denied:
                raise
            except LeaseError as error:
                old = age(round((time.monotonic() - seen_at) * 1000))
                draw(seen, f"disconnected, {old} old: {error}")
                if QUIT in keys.pressed(RETRY_S):
                    return


def _keys(*, live: bool) -> AbstractContextManager[Keyboard]:
    """Take keys where the picture is drawn in place; lines for programs are ended by signals."""
    return keyboard() if live else nullcontext(Keyboard())


def _until_news(follower: Follower, keys: Keyboard, seconds: float) -> bool:
    """Wait for an event, another window size, or the end of the time.

    Returns:
        True: the key that ends the picture was pressed.
    """
    until, size = time.monotonic() + seconds, shutil.get_terminal_size()
    if QUIT in keys.pressed(min(PAUSE_S, seconds)):
        return True
    while (left_s := until - time.monotonic()) > 0:
        news = follower.wait(min(left_s, KEY_S) if keys.watched else left_s)
        if keys.watched and QUIT in keys.pressed(0):
            return True
        if news.events or news.gap or shutil.get_terminal_size() != size:
            return False
    return False


@contextmanager
def _screen() -> Iterator[Draw]:
    """Draw in place; the terminal is restored however it ends."""

    def draw(picture: str, trouble: str) -> None:
        text = f"{paint(trouble, 'red')}\n\n{picture}" if trouble else picture
        lines = text.split("\n")
        columns, height = shutil.get_terminal_size()
        if len(lines) >= height:
            kept = max(0, height - 2)
            lines = [*lines[:kept], f"… {len(lines) - kept} more lines"]
        draw_screen((cut(line, columns) for line in lines), colours=colours)

    colours = click.get_current_context().color is not False
    before = signal.signal(signal.SIGTERM, _stopped)
    enter_screen()
    try:
        yield draw
    except KeyboardInterrupt:
        pass
    finally:
        leave_screen()
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _plain(*, timed: bool) -> Iterator[Draw]:
    """Print pictures below each other unless unchanged; tell trouble on stderr, once."""
    last, away = "", False

    def draw(picture: str, trouble: str) -> None:
        nonlocal last, away
        if trouble and not away:
            say(f"gpu-broker: {trouble}", err=True)
        away = bool(trouble)
        if away or picture == last:
            return
        if timed:
            say(time.strftime("-- %H:%M:%S"))
        say(picture)
        sys.stdout.flush()
        last = picture

    with suppress(KeyboardInterrupt):
        yield draw


def _stopped(*_: object) -> None:
    sys.exit(128 + signal.SIGTERM)
