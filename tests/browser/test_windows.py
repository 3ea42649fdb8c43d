"""The page knows that it hears nothing, and its windows share one stream."""

from __future__ import annotations

import os
import re
import signal
import time
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from tests.api.brokers import GRANTING, Broker
from tests.browser.tabs import Tab

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Browser

    from tests.servers import Server

WINDOWS = 8
"""More than the six connections that a browser keeps to a server."""

HEARD_NOTHING = {"timeout": 45_000}


def hide(tab: Tab, *, hidden: bool) -> None:
    """Make the browser say that a window is covered, or is shown again."""
    tab.page.evaluate(
        """hidden => {
          Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
          document.dispatchEvent(new Event("visibilitychange"));
        }""",
        hidden,
    )


@pytest.fixture(scope="module")
def broker(own: Server) -> Iterator[Broker]:
    """One that reports seldom: the pool does not take it for a loss of data when it is stopped."""
    with Broker(**GRANTING | {"GPU_BROKER_REPORT_S": "60"}, REDIS_URL=own.url) as broker:
        yield broker.wait()


@pytest.fixture
def hung(broker: Broker) -> Iterator[Callable[[], None]]:
    """Stops the broker, which goes on to be connected to; at the end it runs again."""
    yield lambda: os.kill(broker.process.pid, signal.SIGSTOP)
    os.kill(broker.process.pid, signal.SIGCONT)


@pytest.fixture
def windows(chromium: Browser, broker: Broker) -> Iterator[list[Tab]]:
    """Windows of one browser, all in sight."""
    context = chromium.new_context()
    base = f"http://127.0.0.1:{broker.port}"
    opened = []
    for _ in range(WINDOWS):
        opened.append(Tab(context.new_page(), base))
        opened[-1].page.goto(base)
    yield opened
    context.close()
    assert [each.complaints for each in opened] == [[]] * WINDOWS


def test_shown_again_while_the_broker_hangs_it_says_so(
    broker: Broker, tab: Callable[..., Tab], hung: Callable[[], None]
) -> None:
    """Connecting, with its age; then disconnected, with the age of what is shown; then live."""
    page = tab(broker)
    page.is_live()
    hide(page, hidden=True)
    hung()
    hide(page, hidden=False)
    expect(page.notice).to_contain_text(re.compile(r"Connecting for \d+ s\. What is shown is"))
    expect(page.page.locator("body")).to_have_attribute("data-state", "stale")
    expect(page.notice).to_contain_text("the broker does not answer", **HEARD_NOTHING)
    expect(page.notice).to_contain_text(re.compile(r"Disconnected for \d+ s"))
    os.kill(broker.process.pid, signal.SIGCONT)
    page.is_live()
    expect(page.notice).to_be_empty()


def test_watched_while_the_broker_hangs_it_says_so(
    broker: Broker, tab: Callable[..., Tab], hung: Callable[[], None]
) -> None:
    """After three keep-alives that did not come; an act ends too, and says that it may be done."""
    page = tab(broker)
    page.is_live()
    page.page.keyboard.press("p")
    page.dialog.get_by_label("Most leases of one agent").fill("77")
    hung()
    page.dialog.get_by_role("button", name="Change").click()
    expect(page.dialog).to_contain_text("it may be done all the same", **HEARD_NOTHING)
    expect(page.notice).to_contain_text(re.compile("is silent|does not answer"), **HEARD_NOTHING)


def test_windows_do_not_block_each_other(broker: Broker, windows: list[Tab]) -> None:
    """Each is live and follows, in the end by one stream; in each an act is answered.

    A window that hears of no other in time opens a stream, and ends it when it does.
    """
    for each in windows:
        each.is_live()
    end = time.monotonic() + 30
    while sum("/live?" in url for each in windows for url in each.pending) != 1:
        assert time.monotonic() < end, [each.pending for each in windows]
        windows[0].page.wait_for_timeout(100)
    token = broker.granted(agent="seen-by-all", min_memory_mb=10)["token"]
    for each in windows:
        expect(each.row("leases", "seen-by-all")).to_be_visible()
    for each in (windows[0], windows[-1]):
        answered = each.page.evaluate("fetch('policy').then((answer) => answer.status)")
        assert answered == 200
    broker.release(token)
    for each in windows:
        expect(each.row("leases", "seen-by-all")).to_have_count(0)


def test_another_window_takes_the_stream_over(broker: Broker, windows: list[Tab]) -> None:
    """It does so when the window with the stream is closed, or hidden."""
    for each in windows:
        each.is_live()
    windows[0].page.close()
    hide(windows[1], hidden=True)
    rest = windows[2:]
    token = broker.granted(agent="after-that", min_memory_mb=10)["token"]
    for each in rest:
        expect(each.row("leases", "after-that")).to_be_visible()
        each.is_live()
    expect(windows[1].row("leases", "after-that")).to_have_count(0)
    hide(windows[1], hidden=False)
    expect(windows[1].row("leases", "after-that")).to_be_visible()
    broker.release(token)


def test_all_windows_say_that_nothing_is_heard(
    windows: list[Tab], hung: Callable[[], None]
) -> None:
    """Also those that hear it of another."""
    for each in windows:
        each.is_live()
    hung()
    for each in (windows[0], windows[-1]):
        expect(each.notice).to_contain_text("Disconnected for", **HEARD_NOTHING)
