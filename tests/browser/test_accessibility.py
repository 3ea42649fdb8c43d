"""axe finds nothing: light, dark, a phone, every dialog."""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from agent_sdk import LeaseClient
from agent_sdk.errors import LeaseError
from agent_sdk.store.store import Store
from tests.api.brokers import GRANTING, Broker
from tests.browser.axe import LOOKS, clean
from tests.servers import running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.browser.tabs import Tab

    Opened = Callable[..., Tab]


@pytest.fixture(scope="module")
def busy() -> Iterator[Broker]:
    """A pool that shows everything: leases, one who waits, a drained GPU, a busy one."""
    with (
        running() as server,
        Broker(**GRANTING | {"GPU_BROKER_DEVICES": "sim:3x8192"}, REDIS_URL=server.url) as broker,
        LeaseClient(Store(server.url), hostname="h1") as client,
    ):
        broker.wait()
        client.drain("device", "SIM-h1-2", why="fan")
        client.acquire("analyst", memory_mb=2048, ttl_s=600)
        client.acquire("trainer", exclusive=True, ttl_s=600)
        waiting = threading.Thread(target=_wait, args=(client,))
        waiting.start()
        yield broker
        client.revoke_where(agent="critic", force=True)
        for waiter in client.queue():
            client.revoke(waiter.token, force=True)
        waiting.join(15)


def _wait(client: LeaseClient) -> None:
    try:
        client.acquire("critic", memory_mb=8000, wait_s=110)
    except LeaseError as error:
        assert error.code in {"revoked", "no_capacity"}  # noqa: PT017 - in a thread of its own


@pytest.mark.parametrize("look", LOOKS)
def test_page(busy: Broker, tab: Opened, look: str) -> None:
    """With everything on it."""
    page = tab(busy, **LOOKS[look])
    expect(page.row("queue", "critic")).to_be_visible()
    expect(page.row("leases", "trainer")).to_be_visible()
    clean(page)


def test_checker_finds_what_is_wrong(busy: Broker, tab: Opened) -> None:
    """A picture without a text, and text that is hardly seen: each is told with its rule."""
    page = tab(busy)
    page.page.evaluate("document.querySelector('main').append(new Image(1, 1))")
    with pytest.raises(AssertionError, match="image-alt"):
        clean(page)
    page.page.evaluate("""() => {
      const faint = document.createElement("p");
      faint.textContent = "faint";
      faint.style.color = "rgb(100, 100, 100)";
      faint.style.background = "rgb(120, 120, 120)";
      document.querySelector("main").append(faint);
    }""")
    with pytest.raises(AssertionError, match="color-contrast"):
        clean(page, "color-contrast")


def test_dialogs(busy: Broker, tab: Opened) -> None:
    """Dialogs of a host, a GPU, a lease, a waiter, an event; policy, key, help; light, dark."""
    page = tab(busy, reduced_motion="reduce")
    expect(page.row("queue", "critic")).to_be_visible()

    def judged() -> None:
        expect(page.dialog).to_be_visible()
        page.page.emulate_media(color_scheme="light")
        clean(page)
        page.page.emulate_media(color_scheme="dark")
        clean(page, "color-contrast")
        page.page.keyboard.press("Escape")

    for panel, row in (("devices", 0), ("devices", 1), ("leases", 0), ("queue", 0), ("events", 0)):
        page.rows(panel).nth(row).click()
        judged()
    for key in ("p", "k", "?"):
        page.page.keyboard.press(key)
        judged()


def test_disconnected(busy: Broker, tab: Opened) -> None:
    """The notice too is to be read by all."""
    page = tab(busy)
    page.is_live()
    page.page.route(re.compile(r"/live\b"), lambda route: route.abort())
    page.page.evaluate("""() => {
      Object.defineProperty(document, "hidden", {value: true, configurable: true});
      document.dispatchEvent(new Event("visibilitychange"));
      Object.defineProperty(document, "hidden", {value: false, configurable: true});
      document.dispatchEvent(new Event("visibilitychange"));
    }""")
    expect(page.notice).to_contain_text("Disconnected")
    clean(page)
