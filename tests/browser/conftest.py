"""A browser for each file, a tab for each test; whatever a page complains of fails its test."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect, sync_playwright

from tests.api.brokers import GRANTING, Broker
from tests.browser.tabs import Tab

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Browser

    from tests.servers import Server

expect.set_options(timeout=15_000)

QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
)  # fmt: skip
"""Chromium speaks to nobody but the page's broker; a container has no sandbox to give it."""

BROWSERS = ("chromium-headless-shell", "chromium", "google-chrome")
"""The same engine; the shell draws no windows, tabs and menus around the page."""

FOUR = GRANTING | {"GPU_BROKER_DEVICES": "sim:4x8192"}
"""Four simulated GPUs of 8 GiB on host h1."""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Debian's Chromium, or Chrome: there must be one; its headless shell takes half the time.

    For a file, not for the session: Playwright's event loop runs in the main thread until it is
    stopped, and tests of other files have loops of their own. It is nice: other tests measure time.
    """
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    assert path is not None, "no chromium on PATH: apt-get install chromium"
    nice = tmp_path_factory.mktemp("chromium") / "chromium"
    nice.write_text(f'#!/bin/sh\nexec nice -n 10 {path} "$@"\n')
    nice.chmod(0o755)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=nice, args=[*QUIET])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def broker(own: Server) -> Iterator[Broker]:
    with Broker(**FOUR, REDIS_URL=own.url) as broker:
        yield broker.wait()


@pytest.fixture
def tab(chromium: Browser) -> Iterator[Callable[..., Tab]]:
    """Opens tabs; options are those of a browser context."""
    tabs: list[Tab] = []

    def opened(broker: Broker, path: str = "/", **options: object) -> Tab:
        context = chromium.new_context(**{"viewport": {"width": 1300, "height": 900}, **options})
        tabs.append(Tab(context.new_page(), f"http://127.0.0.1:{broker.port}"))
        tabs[-1].page.goto(tabs[-1].base + path)
        return tabs[-1]

    yield opened
    for each in tabs:
        each.page.context.close()
        assert each.complaints == []
        assert {url for url in each.asked if not url.startswith((each.base, "data:"))} == set()
