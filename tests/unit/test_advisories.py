"""Versions of a store with known holes are warned of, and nothing is refused for its number."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from broker.maintenance.advisories import MENDED_REDIS, MENDED_VALKEY, advisory
from tests.program import called
from tests.servers import running

if TYPE_CHECKING:
    from collections.abc import Mapping

SECURITY = Path(__file__).parents[2] / "SECURITY.md"


@pytest.mark.parametrize(
    ("redis", "valkey", "first"),
    [
        ("7.0.15", None, "Redis 7.2.16"), ("7.2.15", None, "Redis 7.2.16"), ("7.2.16", None, None),
        ("8.0.4", None, "Redis 8.2.9"), ("8.2.2", None, "Redis 8.2.9"),
        ("8.10.0", None, "Redis 8.10.1"),
        ("8.10.1", None, None), ("8.10.2", None, None), ("8.12.0", None, None),
        ("9.0.0", None, None),
        ("7.2.4", "9.1.2", None), ("7.2.4", "9.1.0", "Valkey 9.1.1"), ("7.2.4", "9.2.0", None),
        ("7.2.4", "8.1.8", "Valkey 8.1.9"), ("7.2.4", "7.2.14", None), ("", None, None),
        ("of the future", None, None),
    ],
)  # fmt: skip
def test_server_with_a_known_hole_is_told_by_its_number(
    redis: str, valkey: str | None, first: str | None
) -> None:
    """The sentence names the hole and the first version of that series, or the next, without it."""
    said = advisory({"redis_version": redis} | ({"valkey_version": valkey} if valkey else {}))
    assert (said is None) == (first is None)
    if first is not None:
        assert said is not None
        assert said.endswith(f"which {first} has not")
        assert re.search(r"CVE-\d+-\d+", said)


@pytest.mark.parametrize("mended", [MENDED_REDIS, MENDED_VALKEY])
def test_versions_are_those_of_the_document(mended: Mapping[tuple[int, int], int]) -> None:
    """SECURITY.md names each of them."""
    text = SECURITY.read_text()
    for (major, minor), patch in mended.items():
        assert f"{major}.{minor}.{patch}" in text


def test_doctor_warns_of_the_store_and_ends_well() -> None:
    """A doubtful advisory is NOTE: distributions mend a version without changing its number."""
    with running() as server, server.connect() as client:
        said = advisory(client.info())
        answer = called("doctor", REDIS_URL=server.url, GPU_BROKER_DEVICES="none")
    assert (f"NOTE   {said}" in answer.stdout) == (said is not None)
    assert "BROKEN  no host has reported to this pool" in answer.stdout  # it was looked at
