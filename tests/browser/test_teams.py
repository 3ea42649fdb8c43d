"""Teams on the page: a section where there are quotas, and the team of leases and waiters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from agent_sdk import LeaseClient
from agent_sdk.errors import StillWaiting
from agent_sdk.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.api.brokers import Broker
    from tests.browser.tabs import Tab
    from tests.servers import Server

    Opened = Callable[..., Tab]


@pytest.fixture
def client(own: Server) -> Iterator[LeaseClient]:
    """An operator's; what it holds and sets at the end is taken back."""
    with LeaseClient(Store(own.url), client_name="agent", hostname="h1") as client:
        yield client
        client.set_teams({})
        for lease in client.leases():
            client.release(lease.token)


def test_teams_are_there_once_they_have_quotas(
    broker: Broker, client: LeaseClient, tab: Opened, tmp_path: Path
) -> None:
    """And gone with them; leases, waiters and their dialogs name the team."""
    page = tab(broker)
    page.is_live()
    section = page.page.locator("#teams")
    expect(section).to_be_hidden()
    client.set_teams({"nlp": {"nominal_mb": 1024, "weight": 3}, "vision": {"nominal_mb": 4096}})
    client.acquire("analyst", team="nlp", memory_mb=4096)
    with pytest.raises(StillWaiting):
        client.acquire("trainer", team="vision", memory_mb=8192, devices=4, wait_s=0.01,
                       keep_place=True)  # fmt: skip
    expect(section).to_be_visible()
    row = section.locator("tbody tr").filter(has_text="nlp")
    expect(row).to_contain_text("1.0 GiB")
    expect(row).to_contain_text("3.0 GiB")
    expect(row).to_contain_text("100 % of 75 %")
    expect(section.locator("svg.bar").first).to_have_attribute(
        "aria-label", "1.0 GiB of its quota of 1.0 GiB used, 3.0 GiB borrowed"
    )
    expect(page.row("leases", "analyst")).to_contain_text("nlp")
    expect(page.row("queue", "trainer")).to_contain_text("vision")
    shot = page.page.screenshot(path=tmp_path / "teams.png")
    assert shot
    page.row("leases", "analyst").locator("a").first.click()
    expect(page.dialog).to_contain_text("Team")
    expect(page.dialog).to_contain_text("nlp")
    page.page.keyboard.press("Escape")
    client.set_teams({})
    expect(section).to_be_hidden()
    assert page.complaints == []
