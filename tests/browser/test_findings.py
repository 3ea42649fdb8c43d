"""Processes, findings and health on the page: where a person looks for them, in words, for all."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from agent_sdk import LeaseClient
from agent_sdk.store.store import Store
from tests.api.brokers import Broker
from tests.browser.axe import LOOKS, clean
from tests.browser.conftest import FOUR
from tests.found import (
    BLIND,
    HOST,
    QUARANTINE,
    SECOND,
    UNSEEN,
    find,
    process,
    quarantine,
    report,
    tell,
)
from tests.servers import running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.browser.tabs import Tab

    Opened = Callable[..., Tab]


@pytest.fixture(scope="module")
def client() -> Iterator[LeaseClient]:
    """Return a client of a pool in which something is found; no host reports it anew."""
    with running() as server, LeaseClient(Store(server.url), hostname=HOST) as client:
        report(client)
        find(client)
        yield client


@pytest.fixture(scope="module")
def broker(client: LeaseClient) -> Iterator[Broker]:
    away = {"GPU_BROKER_DEVICES": "none", "GPU_BROKER_HOSTNAME": "h2", "SAFE_MODE": "false"}
    url = f"redis://127.0.0.1:{client.redis.connection_pool.connection_kwargs['port']}"
    with Broker(**FOUR | away, REDIS_URL=url) as broker:
        yield broker.wait()


def test_page_counts_what_is_found_and_the_filter_finds_it(broker: Broker, tab: Opened) -> None:
    """A line under the figures; words in the rows of GPUs and leases."""
    page = tab(broker)
    page.is_live()
    line = page.page.locator("#summary .findings")
    expect(line).to_contain_text("1 overuse, 1 squatter, 1 orphan")
    expect(page.row("devices", "overuse +2")).to_be_visible()
    expect(page.row("leases", "trainer")).to_contain_text("overuse")
    page.page.locator("#filter").fill("squatter")
    expect(page.count("devices")).to_have_text("1 of 3")
    page.page.locator("#filter").fill("quarantine")
    expect(page.count("devices")).to_have_text("1 of 3")


def test_gpu_tells_its_processes_and_whose_they_are(broker: Broker, tab: Opened) -> None:
    """With what each finding means; a process leads to its lease, which lists its own."""
    page = tab(broker)
    page.row("devices", "overuse").click()
    rows = page.dialog.locator(".processes tbody tr")
    expect(rows).to_have_count(3)
    expect(rows.nth(0)).to_have_text(re.compile(r"991\s*jupyter\s*bob\s*500 MiB\s*.\s*squatter"))
    expect(rows.nth(1)).to_contain_text("80 %")
    expect(rows.nth(2)).to_contain_text("orphan")
    expect(page.dialog).to_contain_text("squatter: a process that has no lease uses the GPU")
    expect(page.dialog).to_contain_text("2040 MHz, memory 6251 MHz")
    rows.nth(1).get_by_role("link").click()
    expect(page.dialog).to_contain_text("Lease of trainer")
    expect(page.dialog).to_contain_text("Its holder was told of")
    expect(page.dialog).to_contain_text("python3 (pid 4711, ann): 5.0 GiB on GPU 0")


def test_process_without_a_finding_is_called_nothing(
    broker: Broker, client: LeaseClient, tab: Opened
) -> None:
    """The page shows what a host finds, and no guess; one that draws says so."""
    window = process(6, name="firefox") | {"graphics_only": True}
    late = process(7, name="late", token="0" * 16)
    tell(client, BLIND, processes=[process(5), window, late], unseen="some have no pid",
         one_lease="it is small")  # fmt: skip
    page = tab(broker)
    page.rows("devices").nth(3).click()
    rows = page.dialog.locator(".processes tbody tr")
    expect(rows).to_have_count(3)
    expect(page.dialog.locator(".processes .trouble")).to_have_count(0)
    expect(rows.nth(1)).to_contain_text("graphics")
    expect(page.dialog).to_contain_text("Its host cannot tell all: some have no pid")
    expect(page.dialog).to_contain_text("it is small")
    tell(client, BLIND, processes="", unseen=UNSEEN, one_lease="")


def test_gpu_in_quarantine_says_why_and_how_that_ends(
    broker: Broker, client: LeaseClient, tab: Opened
) -> None:
    """Undrain lifts it, and says so; drain is there too, for who wants to keep it out."""
    page = tab(broker)
    page.row("devices", "quarantined").click()
    expect(page.dialog).to_contain_text(QUARANTINE)
    expect(page.dialog).to_contain_text("XID 79")
    expect(page.dialog).to_contain_text("a reset of the GPU")
    expect(page.dialog).to_contain_text("Undrained, its quarantine is lifted")
    expect(page.dialog.get_by_role("button", name="Drain", exact=True)).to_be_visible()
    page.dialog.get_by_role("button", name="Undrain").click()
    expect(page.dialog).to_have_count(0)
    (event,) = [e for e in client.events(10) if e.event == "undrained"]
    assert event.fields["device"] == SECOND
    quarantine(client)


def test_gpu_whose_host_sees_no_processes_says_why(broker: Broker, tab: Opened) -> None:
    """The page does not claim that there are none."""
    page = tab(broker)
    page.rows("devices").nth(3).click()
    expect(page.dialog).to_contain_text(f"Its host cannot tell: {UNSEEN}")


def test_policy_of_findings_is_set_in_words(
    broker: Broker, client: LeaseClient, tab: Opened
) -> None:
    """Each act is chosen from a list that says its meaning."""
    page = tab(broker)
    page.is_live()
    page.page.get_by_role("button", name="Policy").click()
    choice = page.dialog.get_by_role("combobox", name="A lease that idles", exact=True)
    expect(choice).to_have_value("observe")
    choice.select_option("notify")
    page.dialog.get_by_label("What errors of a GPU mean").fill("31=suspect,79=hold")
    page.dialog.get_by_label("A lease idles when").fill("30")
    page.dialog.get_by_role("button", name="Change").click()
    expect(page.dialog).to_have_count(0)
    pool = client.pool()
    assert (pool.idle_action, pool.idle_after_s) == ("notify", 30)
    assert (pool.xid_actions, pool.orphan_action) == ("31=suspect,79=hold", "observe")
    client.set_policy(idle_action="observe", idle_after_s=600, xid_actions="")


@pytest.mark.parametrize("look", LOOKS)
def test_everybody_can_read_it(broker: Broker, tab: Opened, look: str) -> None:
    """axe finds nothing on the page and in the dialogs of GPUs, a lease and the policy."""
    page = tab(broker, reduced_motion="reduce", **LOOKS[look])
    expect(page.row("leases", "trainer")).to_be_visible()
    clean(page)
    assert page.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for panel, row in (("devices", 1), ("devices", 2), ("devices", 3), ("leases", 0)):
        page.rows(panel).nth(row).click()
        expect(page.dialog).to_be_visible()
        clean(page)
        wide = page.dialog.evaluate("box => box.scrollWidth > box.clientWidth")
        assert not wide, (panel, row)
        page.page.keyboard.press("Escape")
    page.page.get_by_role("button", name="Policy").click()
    clean(page)


def test_host_in_trouble_is_shown_without_a_gpu(
    broker: Broker, client: LeaseClient, tab: Opened
) -> None:
    """A line under the figures, a row of its own, and the reason in its dialog."""
    said = {"deadline_ms": 60_000, "sampled_ms": 0, "epoch": "", "safe_mode": False,
            "version": "test"}  # fmt: skip
    client.report("h9", (), **said, trouble="nvidia-smi has not answered", warning="it is slow")
    page = tab(broker)
    page.is_live()
    line = page.page.locator("#summary .findings").filter(has_text="Not seen")
    expect(line).to_contain_text("h9: nvidia-smi has not answered")
    row = page.row("devices", "h9")
    expect(row).to_contain_text("trouble")
    row.click()
    expect(page.dialog).to_contain_text("trouble: nvidia-smi has not answered")
    expect(page.dialog).to_contain_text("it is slow")
    clean(page)
    client.report("h9", (), **said, trouble="", warning="")
