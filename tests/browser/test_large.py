"""A large pool on the page: a page of each list, and the filter and the figures of the broker."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from agent_sdk import LeaseClient
from agent_sdk.protocol.report import About
from agent_sdk.store.store import Store
from tests.api.brokers import Broker
from tests.browser.scenery import DAY_MS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.browser.tabs import Tab
    from tests.servers import Server

    Opened = Callable[..., Tab]

HOSTS, EACH, LEASES, PAGE = 760, 8, 220, 100
"""More GPUs than a page is told whole."""


def report(client: LeaseClient, host: str) -> None:
    """Report a host's GPUs once, for a day; those of host-759 are lost."""
    about = About(deadline_ms=DAY_MS, sampled_ms=0, epoch="", safe_mode=False, version="0.1.0")
    state = "lost" if host == "host-759" else "ok"
    client.report(
        host,
        tuple(
            (
                f"GPU-{host}-{index}",
                (("index", index), ("name", "NVIDIA L4"), ("model", "L4"), ("total_mb", 24_576),
                 ("system_mb", 512), ("used_mb", 0), ("state", state), ("reason", ""),
                 ("utilization_gpu_pct", 50 + index)),
            )
            for index in range(EACH)
        ),
        **about,
    )  # fmt: skip


@pytest.fixture(scope="module")
def client(own: Server) -> Iterator[LeaseClient]:
    """A client of a pool with many GPUs and leases, the first of which is the scout's."""
    with LeaseClient(Store(own.url), client_name="agent", hostname="h1") as client:
        for number in range(HOSTS):
            report(client, f"host-{number:03}")
        for number in range(LEASES):
            agent = "trainer" if number % 10 == 3 else "scout"
            client.acquire(agent, memory_mb=2048, host="any", ttl_s=3600)
        yield client
        for lease in client.leases():
            client.release(lease.token)


@pytest.fixture(scope="module")
def large(own: Server, client: LeaseClient) -> Iterator[Broker]:
    """A broker of that pool."""
    assert client
    settings = {"REDIS_URL": own.url, "GPU_BROKER_DEVICES": "none", "SAFE_MODE": "false"}
    with ExitStack() as stack:
        yield stack.enter_context(Broker(**settings)).wait()


def test_page_of_a_large_pool_opens_with_what_is_seen(large: Broker, tab: Opened) -> None:
    """It has a page of each list, and the figures of the whole pool; Next shows the page after."""
    page = tab(large)
    page.is_live()
    expect(page.count("devices")).to_have_text(f"1-{PAGE} of {HOSTS * EACH}")
    expect(page.count("leases")).to_have_text(f"1-{PAGE} of {LEASES}")
    expect(page.page.locator("#summary")).to_contain_text(str(HOSTS * EACH))
    expect(page.page.locator("#summary")).to_contain_text("8 lost")
    page.page.get_by_role("button", name="Next Leases").click()
    expect(page.count("leases")).to_have_text(f"{PAGE + 1}-{2 * PAGE} of {LEASES}")
    page.page.get_by_role("button", name="Next Leases").click()
    expect(page.count("leases")).to_have_text(f"{2 * PAGE + 1}-{LEASES} of {LEASES}")
    expect(page.page.get_by_role("button", name="Next Leases")).to_be_disabled()
    page.page.get_by_role("button", name="Previous Leases").click()
    expect(page.count("leases")).to_have_text(f"{PAGE + 1}-{2 * PAGE} of {LEASES}")


def test_filter_of_a_large_pool_finds_what_is_not_shown(large: Broker, tab: Opened) -> None:
    """The broker looks for the words: a host far down the list, and an agent's few leases."""
    page = tab(large)
    page.is_live()
    page.page.fill("#filter", "host-707")
    expect(page.count("devices")).to_have_text(str(EACH))
    expect(page.row("devices", "host-707")).to_be_visible()
    page.page.fill("#filter", "trainer")
    expect(page.count("leases")).to_have_text(str(LEASES // 10))
    page.page.fill("#filter", "")
    expect(page.count("leases")).to_have_text(f"1-{PAGE} of {LEASES}")


def test_lease_that_ends_leaves_the_page_of_a_large_pool(
    large: Broker, client: LeaseClient, tab: Opened
) -> None:
    """The rows that are seen follow the pool; another lease takes the place."""
    first, *_ = sorted(client.leases(), key=lambda lease: lease.fence)
    page = tab(large)
    page.is_live()
    expect(page.row("leases", first.token[:8])).to_be_visible()
    client.release(first.token)
    expect(page.row("leases", first.token[:8])).to_have_count(0)
    client.acquire("scout", memory_mb=2048, host="any", ttl_s=3600)


def test_window_asks_with_its_filter_from_the_start(large: Broker, tab: Opened) -> None:
    """A link with a filter shows what matches it, also in a narrow window."""
    page = tab(large, "/#q=host-555", viewport={"width": 420, "height": 800})
    page.is_live()
    expect(page.count("devices")).to_have_text(str(EACH))
