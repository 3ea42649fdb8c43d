"""The accessibility checker, run on a page as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from axe_playwright_python.sync_playwright import Axe

if TYPE_CHECKING:
    from tests.browser.tabs import Tab

LOOKS: Final = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "is_mobile": True},
}
"""Options of a browser context in which every part of the page is looked at."""

ONLY: Final = {"resultTypes": ["violations"]}
"""Details of violations alone: those of thousands of passed nodes take half of a check's time."""


def clean(page: Tab, *rules: str) -> None:
    """Fail if axe finds a violation; of these rules alone, if any are named."""
    found = Axe().run(page.page, options=({"runOnly": [*rules]} if rules else {}) | ONLY)
    assert found.violations_count == 0, found.generate_report()
