"""Each subject has an address; an open dialog follows the pool; GPUs are shown as tiles."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from agent_sdk import LeaseClient
from agent_sdk.store.store import Store
from tests.api.brokers import Broker
from tests.api.keys import new_key
from tests.browser.conftest import FOUR

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.browser.tabs import Tab
    from tests.servers import Server

    Opened = Callable[..., Tab]


@pytest.fixture
def client(own: Server) -> Iterator[LeaseClient]:
    """An agent's; what it holds at the end is given back, what it drained too."""
    with LeaseClient(Store(own.url), client_name="agent", hostname="h1") as client:
        yield client
        client.undrain("host", "h1")
        for lease in client.leases():
            client.release(lease.token)


def copied(page: Tab) -> str:
    """The link that the open dialog gives."""
    page.dialog.get_by_role("button", name="Copy link").click()
    expect(page.dialog.locator(".said")).to_have_text("The link is copied.")
    link: str = page.page.evaluate("navigator.clipboard.readText()")
    return link


def test_link_opens_its_gpu_or_lease_and_marks_its_row(
    broker: Broker, client: LeaseClient, tab: Opened
) -> None:
    """Copied from a dialog, pasted into another browser; closed, the address is free of it."""
    client.acquire("analyst", memory_mb=64)
    page = tab(broker, permissions=["clipboard-read", "clipboard-write"])
    for panel, text, title in (
        ("devices", "2 Simulated", "h1 GPU 2"),
        ("leases", "analyst", "Lease of analyst"),
    ):
        page.row(panel, text).click()
        expect(page.dialog.locator("h2")).to_have_text(title)
        link = copied(page)
        other = tab(broker, link.removeprefix(page.base))
        expect(other.dialog.locator("h2")).to_have_text(title)
        expect(other.row(panel, text)).to_have_attribute("aria-selected", "true")
        other.page.keyboard.press("Escape")
        expect(other.dialog).to_have_count(0)
        expect(other.page).to_have_url(re.compile(r"^[^#]*$"))
        page.page.keyboard.press("Escape")


def test_links_lead_from_one_dialog_to_the_next_and_back(
    broker: Broker, client: LeaseClient, tab: Opened
) -> None:
    """From a lease to its GPU; Back leads to the lease, then to the page. The filter stays."""
    client.acquire("analyst", memory_mb=64)
    page = tab(broker, "/#q=h1")
    page.row("leases", "analyst").click()
    page.dialog.get_by_role("link", name="h1 GPU").click()
    expect(page.dialog.locator("h2")).to_contain_text("h1 GPU")
    page.page.go_back()
    expect(page.dialog.locator("h2")).to_have_text("Lease of analyst")
    page.page.go_back()
    expect(page.dialog).to_have_count(0)
    expect(page.page.locator("#filter")).to_have_value("h1")


def test_link_to_what_is_not_there_says_so(broker: Broker, tab: Opened) -> None:
    """Not an empty dialog, and no error."""
    for path, says in (
        ("/#gpu=GPU-none", "This GPU is not in the pool."),
        ("/#host=none", "This host is not in the pool."),
        ("/#lease=00000000", "This lease is over, or never was in this pool."),
        ("/#waiter=00000000", "This request waits no more, or never did in this pool."),
        ("/#event=1-1", "This event is older than what the page knows."),
    ):
        page = tab(broker, path)
        expect(page.dialog.locator(".gone")).to_have_text(says)


def test_open_dialog_follows_its_gpu(broker: Broker, client: LeaseClient, tab: Opened) -> None:
    """A lease comes and goes in it; what was typed stays."""
    page = tab(broker, "/#gpu=SIM-h1-0")
    expect(page.dialog).to_contain_text("No leases")
    page.dialog.get_by_label("Reason").fill("typed")
    lease = client.acquire("analyst", devices=4)
    expect(page.dialog.get_by_role("link", name="analyst")).to_be_visible()
    client.drain("device", "SIM-h1-0", why="fan")
    expect(page.dialog).to_contain_text("an operator drained it")
    expect(page.dialog.get_by_role("button", name="Undrain")).to_be_visible()
    client.release(lease)
    expect(page.dialog).to_contain_text("No leases")


def test_open_dialog_says_that_its_lease_is_over(
    broker: Broker, client: LeaseClient, tab: Opened
) -> None:
    """It says how and when; the facts stay, and no act on the lease is offered any more."""
    lease = client.acquire("analyst", memory_mb=64)
    page = tab(broker)
    page.row("leases", "analyst").click()
    page.dialog.get_by_label("Reason").fill("typed")
    expect(page.dialog.locator(".gone")).to_be_empty()
    client.release(lease)
    expect(page.dialog.locator(".gone")).to_contain_text("This lease is over: released at")
    expect(page.dialog).to_contain_text("Lease of analyst")
    expect(page.dialog).to_contain_text(lease.token)
    expect(page.dialog.get_by_role("button", name="Revoke")).to_be_hidden()
    expect(page.dialog.get_by_role("button", name="Close")).to_be_focused()
    page.page.keyboard.press("Enter")
    expect(page.dialog).to_have_count(0)


def test_viewer_is_told_what_is_not_shown(
    own: Server, client: LeaseClient, tab: Opened, tmp_path: Path
) -> None:
    """Without a key the lists are not empty but not shown; with a viewer's the rest is named."""
    file = tmp_path / "keys"
    viewer = new_key(file, "kim", "viewer")
    settings = {**FOUR, "REDIS_URL": own.url, "GPU_BROKER_KEYS_FILE": str(file)}
    with Broker(**settings) as broker:
        page = tab(broker.wait())
        client.acquire("trainer", devices=4, ttl_s=300)
        for panel in ("devices", "leases", "queue", "events"):
            empty = page.page.locator(f"#{panel} .empty")
            expect(empty).to_have_text("Not shown to you: a key is needed.")
            expect(page.count(panel)).to_be_empty()
        page.dialog.get_by_label("Key").fill(viewer)
        page.dialog.get_by_role("button", name="Use it").click()
        expect(page.rows("leases")).to_have_count(1)
        page.row("leases", "trainer").click()
        expect(page.dialog).to_contain_text("and more, which only an operator's key is shown")
        page.dialog.get_by_role("button", name="Enter a key").click()
        client.drain("host", "h1", why="it is drawn anew")
        expect(page.row("events", "it is drawn anew")).to_be_visible()
        expect(page.dialog.locator("h2")).to_have_text("API key")
        page.page.keyboard.press("Escape")
        client.undrain("host", "h1")
        expect(page.dialog.locator("h2")).to_have_text("Lease of trainer")
        page.page.keyboard.press("Escape")
        operator = new_key(file, "ann", "operator")
        asked = {"agent": "critic", "devices": 4, "wait_s": 0.1, "on_unavailable": "refuse"}
        own_headers = {"Authorization": f"Bearer {operator}"}
        answer = broker.http.post("lease", json=asked, headers=own_headers)
        assert answer.status_code == 202
        page.row("queue", "critic").click()
        expect(page.dialog).to_contain_text("are shown to an operator's key")
        expect(page.dialog.locator(".said")).to_be_empty()
        client.revoke(answer.json()["token"])
        expect(page.dialog.locator(".gone")).to_contain_text("waits no more: revoked at")


def test_tiles_are_chosen_and_remembered(broker: Broker, client: LeaseClient, tab: Opened) -> None:
    """By a button or a key; after a reload too. A tile has its agent's colour."""
    client.acquire("analyst", devices=4)
    page = tab(broker)
    expect(page.rows("devices")).to_have_count(5)
    page.page.get_by_role("button", name="Tiles").click()
    tiles = page.page.locator("#devices .tile")
    expect(tiles).to_have_count(4)
    expect(page.page.locator("#devices .list")).to_be_hidden()
    page.page.reload()
    expect(tiles).to_have_count(4)
    expect(page.page.get_by_role("button", name="Tiles")).to_have_attribute("aria-pressed", "true")
    fill = "each => getComputedStyle(each).fill"
    bar = tiles.first.locator("rect").first.evaluate(fill)
    legend = page.page.get_by_role("list", name="Colours of the agents")
    swatch = legend.get_by_role("listitem").filter(has_text="analyst").locator(".swatch")
    assert bar == swatch.evaluate("each => getComputedStyle(each).backgroundColor")
    page.page.keyboard.press("v")
    expect(tiles).to_have_count(0)
    expect(page.rows("devices")).to_have_count(5)


def test_tiles_by_keyboard(broker: Broker, tab: Opened) -> None:
    """Tab reaches one of them, arrows the others, Enter opens."""
    page = tab(broker)
    expect(page.rows("devices")).to_have_count(5)
    keys = page.page.keyboard
    page.page.get_by_role("button", name="Tiles").focus()
    keys.press("Enter")
    expect(page.page.locator("#devices .tile")).to_have_count(4)
    keys.press("Tab")
    keys.press("Tab")  # past the host's link
    expect(page.page.locator('.tile[data-id="SIM-h1-0"]')).to_be_focused()
    keys.press("ArrowRight")
    keys.press("ArrowRight")
    expect(page.page.locator('.tile[data-id="SIM-h1-2"]')).to_be_focused()
    keys.press("End")
    keys.press("ArrowLeft")
    keys.press("Enter")
    expect(page.dialog.locator("h2")).to_have_text("h1 GPU 2")
    keys.press("Escape")
    expect(page.page.locator('.tile[data-id="SIM-h1-2"]')).to_be_focused()


def test_sparkline_begins_with_what_the_replica_has_seen(broker: Broker, tab: Opened) -> None:
    """A new page shows the minutes before it was opened, and goes on from there."""
    page = tab(broker)
    page.is_live()
    spark = page.row("devices", "0 Simulated").locator(".spark")
    expect(spark).to_have_attribute(
        "aria-label", "Last 10 minutes: busy 0 to 0 %, memory in use 0 to 0 %"
    )
