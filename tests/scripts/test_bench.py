"""The benches tell what they could not measure, and write where they were told to."""

# ruff: noqa: PLC0415 - the benches are no package: their folder is on the path in a test alone

from __future__ import annotations

from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "scripts" / "bench"


@pytest.fixture(autouse=True)
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))


def test_a_peer_that_is_not_installed_is_a_row_that_says_why(monkeypatch):
    """Without etcd on PATH the page has a line for it, and the figures of the others."""
    import peer_report
    import peer_servers
    import peers

    monkeypatch.setenv("PATH", "")
    found = peers.Results({"Python": "3"})
    found.pairs = {"redis-py Lock": {1: [{"pairs_per_s": 7.0, "p50_us": 1.0, "p99_us": 2.0}]}}
    with pytest.raises(peer_servers.NotMeasured) as why, peer_servers.etcd_server():
        pass
    found.miss("etcd lease + lock", "pairs", why.value)
    page = peer_report.markdown(found)
    assert "- etcd lease + lock: pairs: no etcd on PATH: apt-get install etcd-server" in page
    assert "| redis-py Lock | threads | 7 (1, 2) |" in page


def test_a_section_is_written_between_its_markers_alone(tmp_path):
    """The text around the markers stays, and a page without them stays as it is."""
    import peer_report

    page = tmp_path / "page.md"
    page.write_text("before\n<!-- bench:x -->\nold\n<!-- /bench:x -->\nafter\n")
    peer_report.put(page, "x", "new")
    peer_report.put(page, "y", "nowhere")
    assert page.read_text() == "before\n<!-- bench:x -->\n\nnew\n\n<!-- /bench:x -->\nafter\n"


def test_growth_is_not_flat_and_a_short_run_says_nothing():
    """A soak whose keys grow is told apart from one whose keys do not, and from too few samples."""
    import soak

    def run(keys):
        return [soak.Sample(float(n), 1.0, count, 0, 0, 0, 0) for n, count in enumerate(keys)]

    assert soak.flat(run([1000 + 10 * n for n in range(100)]), "others", 0) is False
    assert soak.flat(run([1000 + n % 7 for n in range(100)]), "others", 0) is True
    assert soak.flat(run([1000] * 5), "others", 0) is None


def test_a_worker_of_ours_grants_hands_over_and_keeps_the_order():
    """The probes that the table rests on say of the broker what its invariants promise."""
    import peer_probes
    import peer_servers

    with peer_servers.redis_server() as server:
        peer_servers.make_pools(server.url)
        with (
            peer_servers.Process(peer_probes.OURS, server.url) as one,
            peer_servers.Process(peer_probes.OURS, server.url) as other,
        ):
            assert one.ask("pairs", clients=2, seconds=0.1)["pairs_per_s"] > 0
            assert peer_probes.fenced(one).yes
            assert peer_probes.ordered(one, other).yes
