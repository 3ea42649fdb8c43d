"""The pictures of the documentation: the page over a made-up fleet, drawn by a real Chromium.

`make docs-assets`. What is made up: the hosts, which report once, their telemetry, the events
of the hour before, and what was used in the months before; the store, the broker, the leases, the
queue and the page are real.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1]))

from agent_sdk import LeaseClient
from agent_sdk.errors import LeaseError
from agent_sdk.protocol.report import About
from agent_sdk.store.store import Store
from tests.api.brokers import Broker
from tests.browser.past import write_history, write_past

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page

DOCS = Path(__file__).parents[1] / "docs"

FLEET = {
    "gpu-host-1": ("NVIDIA H100 80GB HBM3", 81_559, 4),
    "gpu-host-2": ("NVIDIA A100-SXM4-40GB", 40_960, 4),
    "gpu-host-3": ("NVIDIA L4", 23_034, 2),
}

AGENTS = ("analyst", "scout", "critic", "trainer", "embedder", "reranker")

PICTURES = {
    "page.png": {"viewport": {"width": 1360, "height": 1000}, "color_scheme": "light"},
    "page-tiles.png": {"viewport": {"width": 1360, "height": 820}, "color_scheme": "dark"},
    "page-phone.png": {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark",
                       "device_scale_factor": 2, "is_mobile": True},
    "usage.png": {"viewport": {"width": 1360, "height": 1048}, "color_scheme": "light"},
    "usage-week.png": {"viewport": {"width": 1360, "height": 760}, "color_scheme": "dark"},
}  # fmt: skip

chance = random.Random(7)


def an_hour_before(client: LeaseClient) -> None:
    """Leases that came and went, some after a wait, in the stream alone."""
    now_ms = int(time.time() * 1000)
    found: list[tuple[int, dict[str, Any]]] = []
    for n in range(420):
        at = now_ms - chance.randrange(120_000, 3_600_000)
        ends = at + chance.randrange(60_000, 600_000)
        mb = chance.choice((4096, 8192, 16_384))
        said = {"token": f"history-{n:04}-aaaa-bbbb", "agent": chance.choice(AGENTS)}
        held = said | {"devices": f"GPU-1-{n % 4}={mb}", "fence": at * 1000}
        if n % 5 == 0:
            joined = at - chance.randrange(1_000, 90_000)
            found.append((joined, {"event": "waiting", **said, "queue_id": "*/*/m14"}))
        found.append((at, {"event": "granted", **held}))
        if ends < now_ms - 5_000:
            found.append((ends, {"event": "expired" if n % 17 == 0 else "released", **held}))
    for at, fields in sorted(found, key=lambda x: x[0]):
        client.redis.xadd(client.keys.events, fields, id=f"{at}-*")


def report(client: LeaseClient) -> None:
    """Every host, once, for an hour."""
    about = About(deadline_ms=3_600_000, sampled_ms=0, epoch="", safe_mode=False, version="0.1.0")
    for number, (host, (name, total, count)) in enumerate(FLEET.items(), 1):
        devices = []
        for i in range(count):
            used = 30_000 if (number, i) == (2, 1) else 400
            fields = {"index": i, "name": name, "model": name, "state": "ok", "reason": "",
                      "total_mb": total, "system_mb": 512, "used_mb": used, "simulated": 0,
                      "utilization_gpu_pct": (busy := chance.randrange(5, 97)),
                      "temperature_c": 36 + busy * 2 // 5,
                      "power_draw_w": (60 + busy * 6, 55 + busy * 3, 25 + busy // 2)[number - 1],
                      }  # fmt: skip
            devices.append((f"GPU-{number}-{i}", tuple(fields.items())))
        client.report(host, tuple(devices), **about)


def leases(client: LeaseClient) -> None:
    """Return the leases of each holder now."""
    client.acquire("trainer", devices=2, host="gpu-host-1", ttl_s=7200)
    for n in range(13):
        with suppress(LeaseError):
            client.acquire(AGENTS[n % 6], memory_mb=chance.choice((6144, 8192, 12_288, 20_480)),
                           host="any", ttl_s=chance.choice((90, 600, 3600)))  # fmt: skip
    client.drain("device", "GPU-3-1", why="fan noise")


def wait(client: LeaseClient, agent: str, **ask: Any) -> None:
    """Wait in the queue until the pictures are made."""

    def stand() -> None:
        with suppress(LeaseError):
            client.acquire(agent, wait_s=60, **ask)

    Thread(target=stand, daemon=True).start()


@contextmanager
def fleet() -> Iterator[Broker]:
    """Run a broker over all of it."""
    with tempfile.TemporaryDirectory() as folder:
        socket = Path(folder) / "redis.sock"
        command = [shutil.which("redis-server") or "redis-server", "--port", "0", "--unixsocket",
                   socket, "--save", "", "--dir", folder]  # fmt: skip
        store = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            url = f"unix://{socket}"
            while not socket.exists():
                time.sleep(0.02)
            with LeaseClient(Store(url), client_name="docs", hostname="gpu-host-1") as client:
                an_hour_before(client)
                report(client)
                write_past(client, days=90, agents=18, hosts=len(FLEET), teams=6)
                write_history(client, 120, hosts=len(FLEET))
                leases(client)
                wait(client, "trainer", devices=4, model="NVIDIA H100 80GB HBM3", host="any")
                wait(client, "analyst", memory_mb=70_000, host="any")
                with Broker(REDIS_URL=url, GPU_BROKER_DEVICES="none", SAFE_MODE="false",
                            GPU_BROKER_HOSTNAME="broker-1") as broker:  # fmt: skip
                    yield broker.wait()
        finally:
            store.kill()
            store.wait()


TRENDS = """async (said) => {
  const { takeTrends } = await import("/static/trends.js");
  takeTrends(said);
  dispatchEvent(new PopStateEvent("popstate"));
}"""
"""The page takes the trends as if a replica that ran before had told them."""


def trends() -> dict[str, Any]:
    """Ten minutes of each GPU, made up: a load that wanders, memory that is taken by steps."""
    newest = int(time.time()) // 15
    devices: dict[str, list[tuple[int, int, int]]] = {}
    for number, (_, _, count) in enumerate(FLEET.values(), 1):
        for i in range(count):
            busy, memory = chance.randrange(20, 90), chance.randrange(10, 60)
            points = devices[f"GPU-{number}-{i}"] = []
            for n in range(40):
                busy = min(100, max(0, busy + chance.randrange(-22, 23)))
                memory = min(95, memory + chance.randrange(5, 25)) if n % 13 == i else memory
                points.append((newest - 39 + n, busy, memory))
    return {"step_s": 15, "devices": devices}


OF_USE = {"usage.png": "/#usage=30&by=team", "usage-week.png": "/#usage=90&by=team"}
"""Addresses of the pictures of what was used."""


def show_use(page: Page, name: str) -> None:
    """Wait until it is drawn; of the second picture show the map of hosts and what follows."""
    page.wait_for_selector(".cells i")
    page.wait_for_selector(".past tbody tr")
    if name == "usage-week.png":
        page.get_by_role("button", name="The last 7 days").click()
        page.get_by_role("button", name="vision").click()
        page.wait_for_selector("#past-title:has-text('of vision')")
        page.wait_for_selector(".past tbody tr")
        page.locator(".by-hour").evaluate("each => each.scrollIntoView()")
        page.evaluate("scrollBy(0, -56)")


def draw(browser: Browser, broker: Broker, name: str, options: dict[str, Any]) -> None:
    """One picture."""
    page = browser.new_page(**options)
    page.goto(f"http://127.0.0.1:{broker.port}{OF_USE.get(name, '')}")
    if name in OF_USE:
        show_use(page, name)
    else:
        page.wait_for_selector("#queue .rows .row:nth-child(2)")
        page.evaluate(TRENDS, trends())
    if name == "page-tiles.png":
        page.keyboard.press("v")
        page.wait_for_selector("#devices .tile")
        page.locator("#devices").evaluate("each => each.scrollIntoView()")
        page.evaluate("scrollBy(0, -56)")
    page.wait_for_timeout(1500)
    page.screenshot(path=DOCS / name)
    page.close()
    print(DOCS / name)


def main() -> None:
    """Draw all."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("no chromium on PATH: apt-get install chromium")
    with fleet() as broker, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, options in PICTURES.items():
            draw(browser, broker, name, options)
        browser.close()


if __name__ == "__main__":
    main()
