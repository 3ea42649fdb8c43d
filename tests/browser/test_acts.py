"""Acts of an operator on the page, and none for any other role."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import expect

from agent_sdk import LeaseClient
from agent_sdk.errors import LeaseError
from agent_sdk.keys import Keys
from agent_sdk.policy import FIELDS
from agent_sdk.store.store import Store
from tests.api.brokers import Broker, eventually
from tests.api.keys import new_key
from tests.browser.conftest import FOUR

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from playwright.sync_api import Page, Route

    from tests.browser.tabs import Tab
    from tests.servers import Server

    Opened = Callable[..., Tab]

KEYS = Keys("default")

NASTY = "<img src=x onerror=alert(1)> & \"quotes\" 'and' ${x}"


@pytest.fixture
def client(own: Server) -> Iterator[LeaseClient]:
    """An agent's; what it holds at the end is given back, what it drained too."""
    with LeaseClient(Store(own.url), client_name="agent", hostname="h1") as client:
        yield client
        client.undrain("host", "h1")
        for lease in client.leases():
            client.release(lease.token)


def last_event(own: Server, name: str) -> dict[str, Any]:
    """The newest event of that name, as the stream has it."""
    with own.connect() as store:
        entries: Any = store.xrevrange(KEYS.events, count=50)
        return next(fields for _, fields in entries if fields["event"] == name)


def test_drain_and_undrain(broker: Broker, own: Server, client: LeaseClient, tab: Opened) -> None:
    """A GPU, with a reason; every open page sees it, and the next lease goes elsewhere."""
    page, other = tab(broker), tab(broker)
    page.rows("devices").nth(1).click()
    page.dialog.get_by_label("Reason").fill("fan noise")
    page.dialog.get_by_role("button", name="Drain").click()
    expect(page.dialog).to_have_count(0)
    for each in (page, other):
        expect(each.rows("devices").nth(1)).to_contain_text("drained")
        expect(each.row("events", "fan noise")).to_contain_text("h1:0")
        expect(each.page.locator("#summary")).to_contain_text("1 drained")
        expect(each.page.locator("#summary")).to_contain_text("24.0 GiB")
        expect(each.page.locator("#summary")).to_contain_text("of 32.0 GiB; 8.0 GiB not leasable")
        expect(each.rows("devices").nth(0)).to_contain_text("24.0 GiB free")
        expect(each.rows("devices").nth(1)).to_contain_text("0.0 of 8.0 GiB")
    other.row("events", "fan noise").click()
    expect(other.dialog).to_contain_text("An operator drained it")
    assert last_event(own, "drained")["reason"] == "fan noise"
    assert client.acquire("analyst", exclusive=True).devices[0].index != 0
    page.rows("devices").nth(1).click()
    expect(page.dialog).to_contain_text("an operator drained it: no new leases")
    page.dialog.get_by_role("button", name="Undrain").click()
    expect(page.rows("devices").nth(1)).to_contain_text("ok")


def test_drain_a_host(broker: Broker, client: LeaseClient, tab: Opened) -> None:
    """With all it has."""
    page = tab(broker)
    page.rows("devices").first.click()
    page.dialog.get_by_role("button", name="Drain").click()
    expect(page.page.locator("#summary")).to_contain_text("4 drained")
    assert all(device.drained for device in client.devices())


def test_gpu_that_is_reserved_says_for_whom(
    broker: Broker, own: Server, client: LeaseClient, tab: Opened
) -> None:
    """Free and ok, and yet nobody else's: the row says why, the tile does not count it.

    The 30 s that the queue takes to keep it are not waited for: the record is told.
    """
    client.acquire("trainer", devices=3)
    free = next(device for device in client.devices() if not device.leases)
    asked = broker.lease(agent="critic", devices=4, wait_s=0.1, on_unavailable="refuse").json()
    with own.connect() as store:
        store.hset(KEYS.record(asked["token"]), "reserved", free.uuid)
    page = tab(broker)
    expect(page.row("devices", "reserved for critic")).to_contain_text("0.0 of 8.0 GiB")
    expect(page.page.locator("#summary")).to_contain_text("of 32.0 GiB; 8.0 GiB not leasable")
    page.row("devices", "reserved for critic").click()
    expect(page.dialog).to_contain_text("no later request gets this GPU")
    client.revoke(asked["token"])


def test_revoke_with_force(broker: Broker, own: Server, client: LeaseClient, tab: Opened) -> None:
    """Gone from the page at once; the holder learns why."""
    lease = client.acquire("runaway", memory_mb=64)
    page = tab(broker)
    page.row("leases", "runaway").click()
    page.dialog.get_by_label("Reason").fill("runs wild")
    page.dialog.get_by_label("now, although").check()
    page.dialog.get_by_role("button", name="Revoke").click()
    expect(page.rows("leases")).to_have_count(0)
    assert last_event(own, "revoke")["reason"] == "runs wild"
    assert client.lookup(lease.token) == "revoked"


def test_revoke_without_force_tells_what_will_be(
    broker: Broker, client: LeaseClient, tab: Opened
) -> None:
    """It ends at the next renewal: until then it is still there."""
    client.acquire("holder", memory_mb=64)
    page = tab(broker)
    page.row("leases", "holder").click()
    expect(page.dialog).to_contain_text("at its holder's next renewal, within a minute")
    page.dialog.get_by_role("button", name="Revoke").click()
    expect(page.row("events", "revoke")).to_be_visible()
    expect(page.rows("leases")).to_have_count(1)


def test_policy(broker: Broker, client: LeaseClient, tab: Opened) -> None:
    """It sends the changed fields alone; a refusal stands beside its field."""
    page = tab(broker)
    page.is_live()
    page.page.get_by_role("button", name="Policy").click()
    version = client.pool().policy_version
    page.dialog.get_by_label("Most memory").fill("100")
    page.dialog.get_by_role("button", name="Change").click()
    expect(page.dialog.locator(".said")).to_contain_text("max_memory_per_agent_mb must be 256 to")
    page.dialog.get_by_label("Memory of a lease that names none").fill("")
    page.dialog.get_by_label("Most memory").fill("4096")
    page.dialog.get_by_role("button", name="Change").click()
    expect(page.dialog.locator(".said")).to_contain_text("default_memory_mb must be 1 to")
    page.dialog.get_by_label("Memory of a lease that names none").fill("2048")
    page.dialog.get_by_label("GPUs may be shared").uncheck()
    page.dialog.get_by_role("button", name="Change").click()
    expect(page.dialog).to_have_count(0)
    pool = client.pool()
    assert (pool.max_memory_per_agent_mb, pool.allow_fractional_shares) == (4096, False)
    assert pool.policy_version == version + 1
    client.set_policy(max_memory_per_agent_mb=1_048_576, allow_fractional_shares=True)
    expect(page.row("events", "allow_fractional_shares")).to_be_visible()


def test_policy_form_has_what_the_broker_declares(broker: Broker, tab: Opened) -> None:
    """Every field but SAFE_MODE, with its range; the form follows a change that another makes."""
    page = tab(broker)
    page.is_live()
    page.page.keyboard.press("p")
    controls = page.dialog.locator("form.act :is(input, select)")
    expect(controls).to_have_count(len(FIELDS) - 1)
    for name, field in FIELDS.items():
        control = page.dialog.locator(f'[name="{name}"]')
        if field.kind == "number":
            expect(control).to_have_attribute("max", str(field.most))
    leases = page.dialog.get_by_label(FIELDS["max_leases_per_agent"].label)
    expect(leases).to_have_value("256")
    assert broker.http.post("policy", json={"max_leases_per_agent": 255}).status_code == 200
    expect(leases).to_have_value("255")
    assert broker.http.post("policy", json={"max_leases_per_agent": 256}).status_code == 200


def test_words_of_others_are_text(broker: Broker, client: LeaseClient, tab: Opened) -> None:
    """A reason that is markup stays what it is."""
    page = tab(broker)
    client.drain("device", "SIM-h1-2", why=NASTY)
    expect(page.row("events", "onerror")).to_contain_text(NASTY)
    page.row("events", "onerror").click()
    expect(page.dialog).to_contain_text(NASTY)
    assert page.page.locator("img").count() == 0


def test_failed_act_is_said_and_loses_nothing(
    broker: Broker, client: LeaseClient, tab: Opened
) -> None:
    """The connection breaks; the reason that was typed is still there, and so is the lease."""
    client.acquire("short", memory_mb=64)
    page = tab(broker)
    page.page.route("**/revoke", lambda route: route.abort())
    page.row("leases", "short").click()
    page.dialog.get_by_label("Reason").fill("typed")
    page.dialog.get_by_role("button", name="Revoke").click()
    expect(page.dialog.locator(".said")).to_have_text("the broker does not answer")
    expect(page.dialog.get_by_label("Reason")).to_have_value("typed")
    expect(page.dialog.get_by_role("button", name="Revoke")).to_be_focused()
    page.page.unroute("**/revoke")
    page.dialog.get_by_label("now, although").check()
    page.dialog.get_by_role("button", name="Revoke").click()
    expect(page.rows("leases")).to_have_count(0)


@pytest.fixture
def critic(client: LeaseClient) -> Iterator[None]:
    """One who waits for the GPUs that `trainer` holds."""
    client.acquire("trainer", devices=4, ttl_s=600)

    def wait() -> None:
        with suppress(LeaseError):
            client.acquire("critic", memory_mb=64, wait_s=60)

    waiting = threading.Thread(target=wait)
    waiting.start()
    yield
    eventually(client.queue, 5)
    client.revoke(client.queue()[0].token)
    waiting.join(10)


class Held:
    """Requests of the page that are answered when the test says so."""

    def __init__(self, page: Page, *paths: str) -> None:
        self._page = page
        self._routes: list[Route] = []
        for path in paths:
            page.route(path, self._hold)

    def _hold(self, route: Route) -> None:
        self._routes.append(route)

    def answer(self) -> None:
        """Wait for one to be asked, and until the page has taken its answer."""
        eventually(lambda: self._page.wait_for_timeout(20) or self._routes, 5)
        route = self._routes.pop()
        with self._page.expect_response(route.request.url) as answer:
            route.continue_()
        answer.value.finished()
        self._page.wait_for_timeout(50)


@pytest.mark.usefixtures("critic")
def test_late_answer_leaves_the_next_dialog_alone(
    broker: Broker, client: LeaseClient, tab: Opened
) -> None:
    """A late answer to explain, an act or a policy touches no dialog that was opened since."""
    page = tab(broker)
    held = Held(page.page, "**/explain", "**/drain", "**/policy")
    keys = page.page.keyboard
    page.row("queue", "critic").click()
    keys.press("Escape")
    held.answer()
    expect(page.dialog).to_have_count(0)
    page.row("queue", "critic").click()
    keys.press("Escape")
    keys.press("?")
    held.answer()
    expect(page.dialog.locator("h2")).to_have_text("Help")
    keys.press("Escape")

    page.rows("devices").nth(1).click()
    page.dialog.get_by_role("button", name="Drain").click()
    keys.press("Escape")
    keys.press("p")
    held.answer()
    expect(page.dialog.locator("h2")).to_have_text("Policy")
    page.dialog.get_by_label("Most memory").fill("2000000")
    page.dialog.get_by_role("button", name="Change").click()
    keys.press("Escape")
    keys.press("k")
    held.answer()
    expect(page.dialog.locator("h2")).to_have_text("API key")
    expect(page.dialog.locator(".said")).to_be_empty()
    client.set_policy(max_memory_per_agent_mb=1_048_576)


@pytest.mark.usefixtures("critic")
def test_what_is_typed_stays_in_its_dialog(broker: Broker, tab: Opened) -> None:
    """Also when explain answers meanwhile; never in the next one, of the same form or another."""
    page = tab(broker)
    held = Held(page.page, "**/explain")
    page.row("queue", "critic").click()
    page.dialog.get_by_label("Reason").fill("typed")
    held.answer()
    expect(page.dialog).to_contain_text("a lease has the whole device")
    expect(page.dialog.get_by_label("Reason")).to_have_value("typed")
    page.page.keyboard.press("Escape")
    page.row("leases", "trainer").click()
    expect(page.dialog.get_by_label("Reason")).to_have_value("")
    page.dialog.get_by_label("Reason").fill("too")
    page.dialog.get_by_label("now, although").check()
    page.page.keyboard.press("Escape")
    page.row("leases", "trainer").click()
    expect(page.dialog.get_by_label("Reason")).to_have_value("")
    expect(page.dialog.get_by_label("now, although")).not_to_be_checked()
    page.page.keyboard.press("Escape")
    for _ in range(2):
        page.page.keyboard.press("p")
        expect(page.dialog.get_by_label("GPUs may be shared")).to_be_checked()
        page.dialog.get_by_label("GPUs may be shared").uncheck()
        page.page.keyboard.press("Escape")


def test_broker_with_keys(own: Server, client: LeaseClient, tab: Opened, tmp_path: Path) -> None:
    """No key: nothing is shown. A viewer sees and cannot act. An operator acts, in her name."""
    file = tmp_path / "keys"
    viewer, ann = new_key(file, "kim", "viewer"), new_key(file, "ann", "operator")
    settings = {**FOUR, "REDIS_URL": own.url, "GPU_BROKER_KEYS_FILE": str(file)}
    with Broker(**settings) as broker:
        page = tab(broker.wait())
        lease = client.acquire("analyst", memory_mb=64, ttl_s=300)
        expect(page.dialog).to_contain_text("This broker wants a key")
        expect(page.notice).to_contain_text("Not shown")
        assert page.rows("devices").count() == 0

        def enter(key: str) -> None:
            page.dialog.get_by_label("Key").fill(key)
            page.dialog.get_by_role("button", name="Use it").click()

        enter("gbk_wrong")
        expect(page.notice).to_contain_text("Not shown")
        page.page.keyboard.press("k")
        enter(viewer)
        page.is_live()
        expect(page.rows("devices")).to_have_count(5)
        expect(page.page.locator("#key")).to_have_text("Key: kim")
        assert lease.token not in page.page.content()
        page.row("leases", "analyst").click()
        expect(page.dialog).to_contain_text("an operator's key")
        expect(page.dialog.get_by_role("button", name="Revoke")).to_have_count(0)
        page.dialog.get_by_role("button", name="Enter a key").click()
        enter(ann)
        expect(page.page.locator("#key")).to_have_text("Key: ann")
        expect(page.dialog).to_contain_text("Lease of analyst")  # where the key was asked for
        page.dialog.get_by_label("now, although").check()
        page.dialog.get_by_role("button", name="Revoke").click()
        expect(page.rows("leases")).to_have_count(0)
        assert last_event(own, "revoke")["by"] == "ann"
        assert all(ann not in url and viewer not in url for url in page.asked)
        file.write_text(
            "\n".join(x for x in file.read_text().splitlines() if "ann" not in x) + "\n"
        )
        expect(page.notice).to_contain_text("Not shown", timeout=15_000)
        eventually(lambda: broker.process.poll() is None, 1)
