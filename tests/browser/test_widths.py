"""Five widths, light and dark, list and tiles: all is readable, and axe finds nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from tests.browser.axe import clean
from tests.browser.scenery import HOSTS, scenery

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent_sdk import LeaseClient
    from tests.api.brokers import Broker
    from tests.browser.tabs import Tab

    Opened = Callable[..., Tab]

WIDTHS = (360, 768, 1280, 1920, 2560)

CUT = """() => [...document.querySelectorAll(
  ".cell, .tile, .tile *, .figure > *, .panel-head, header > *")]
  .filter((each) => each.clientWidth && each.scrollWidth > each.clientWidth)
  .map((each) => `${each.className}: ${each.innerText} ${each.scrollWidth}`)"""
"""Elements that are wider than their place."""

HIDDEN = """() => [...document.querySelectorAll(":is(.row, .tile) :is(.state, .number)")]
  .filter((each) => {
    const inner = each.getBoundingClientRect();
    const outer = each.closest(".cell, .tile").getBoundingClientRect();
    return inner.width && (inner.right > outer.right + 1 || inner.bottom > outer.bottom + 1);
  })
  .map((each) => each.innerText)"""
"""States and figures that stick out of their cell, below or aside."""


@pytest.fixture(scope="module")
def pool() -> Iterator[tuple[Broker, LeaseClient]]:
    """MIG, drained, quarantined, reserved, failed, found, waiting: all of it."""
    with scenery() as found:
        yield found


@pytest.fixture(params=WIDTHS)
def page(request: pytest.FixtureRequest, pool: tuple[Broker, LeaseClient], tab: Opened) -> Tab:
    page = tab(pool[0], viewport={"width": request.param, "height": 1000}, reduced_motion="reduce")
    expect(page.rows("queue")).to_have_count(2)
    return page


def clean_in_both_schemes(page: Tab) -> None:
    """Nothing for axe to say, in light and in dark."""
    page.page.emulate_media(color_scheme="light")
    clean(page)
    page.page.emulate_media(color_scheme="dark")
    clean(page, "color-contrast")


def readable(page: Tab) -> None:
    """Nothing is cut, nothing sticks out, the page does not scroll aside."""
    assert page.page.evaluate(CUT) == []
    assert page.page.evaluate(HIDDEN) == []
    assert page.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def list_is_readable(page: Tab) -> None:
    """Check every row of the GPUs, and what is seen of the other lists."""
    seen = set()
    box = page.page.locator("#devices .list")
    for _ in range(40):
        readable(page)
        seen |= set(page.page.locator("#devices .state").all_inner_texts())
        seen |= set(page.page.locator("#devices .busy").all_inner_texts())
        at = box.evaluate("box => box.scrollTop")
        box.evaluate("box => { box.scrollTop += box.clientHeight - 100; }")
        if box.evaluate("box => box.scrollTop") == at:
            break
    else:
        pytest.fail("the list has no end")
    assert {"quarantined", "reserved", "drained", "error", "mig", "ok", "100 %"} <= seen
    clean_in_both_schemes(page)


def tiles_are_readable(page: Tab) -> None:
    """Check that every GPU has one; the agents' colours have a legend."""
    tiles = page.page.locator("#devices .tile")
    expect(tiles).to_have_count(sum(len(models) for models in HOSTS.values()))
    legend = page.page.get_by_role("list", name="Colours of the agents")
    expect(legend).to_contain_text("trainer")
    for n in range(0, tiles.count(), 4):
        tiles.nth(n).scroll_into_view_if_needed()
        readable(page)
    clean_in_both_schemes(page)


def test_list_and_tiles_are_readable(page: Tab) -> None:
    """Every GPU, as a row and then as a tile, in one tab: opening it takes longer than a look."""
    list_is_readable(page)
    page.page.keyboard.press("v")
    tiles_are_readable(page)


def test_safe_mode_is_seen(tab: Opened) -> None:
    """The figure that says how much is free says that nothing is given.

    In a pool of its own: SAFE_MODE ends all waiting, and what is reserved.
    """
    with scenery(reserved=False) as (broker, client):
        client.set_policy(safe_mode=True)
        page = tab(broker)
        for width in WIDTHS:
            page.page.set_viewport_size({"width": width, "height": 900})
            expect(page.page.locator("#summary")).to_contain_text("none: SAFE_MODE is on")
            readable(page)
        clean(page)
