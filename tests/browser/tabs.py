"""One tab that has the page open, and what a test does with it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from playwright.sync_api import expect

if TYPE_CHECKING:
    from playwright.sync_api import ConsoleMessage, Locator, Page

EXPECTED = re.compile(
    r"Failed to load resource: "
    r"(the server responded with a status of (401|403|404|409|422)|net::ERR_)"
)
"""Complaints of Chromium about answers that the page handles."""


class Tab:
    """The page, as a person has it open.

    Attributes:
        complaints: errors of scripts and of the content security policy.
        asked: every URL that was asked for.
        pending: URLs of requests that have not ended.
    """

    def __init__(self, page: Page, base: str) -> None:
        self.page = page
        self.base = base
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.pending: list[str] = []
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", self._heard)
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("request", lambda request: self.pending.append(request.url))
        page.on("requestfinished", lambda request: self.pending.remove(request.url))
        page.on("requestfailed", lambda request: self.pending.remove(request.url))

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"} and not EXPECTED.match(message.text):
            self.complaints.append(message.text)

    def rows(self, panel: str) -> Locator:
        """The rows of a list that are drawn, without its head."""
        return self.page.locator(f"#{panel} .rows > .row")

    def row(self, panel: str, text: str) -> Locator:
        """The first row that says so."""
        return self.rows(panel).filter(has_text=text).first

    def count(self, panel: str) -> Locator:
        """Return the number that a list says it has."""
        return self.page.locator(f"#{panel} .count")

    @property
    def dialog(self) -> Locator:
        """Return the dialog that is open above the page."""
        return self.page.locator("#dialog[open]")

    @property
    def notice(self) -> Locator:
        """Return the page's notice."""
        return self.page.locator("#notice")

    def is_live(self) -> None:
        """Wait until it shows what is."""
        expect(self.page.locator("body")).to_have_attribute("data-state", "live", timeout=15_000)
