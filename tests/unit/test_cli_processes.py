"""Processes, findings and health, as the command line shows them."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import click
import pytest

from agent_sdk import LeaseClient, Store
from agent_sdk.testing import TestBroker
from tests.found import BLIND, FIRST, HOST, QUARANTINE, SECOND, UNSEEN, find, process, report, tell
from tests.program import called
from tests.servers import running
from tests.unit.screens import screen

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def pool() -> Iterator[TestBroker]:
    """A store of its own, so that its GPUs are nobody else's."""
    with running() as server, LeaseClient(Store(server.url), hostname=HOST) as client:
        yield TestBroker(server.url, HOST, client)


@pytest.fixture
def found(pool: TestBroker) -> str:
    """Three GPUs on which something is found; the token of the lease."""
    pool.client.redis.flushall()
    report(pool.client)
    return find(pool.client)


def printed(pool: TestBroker, *args: str) -> str:
    done = called(*args, REDIS_URL=pool.url, GPU_BROKER_HOSTNAME=HOST)
    assert done.returncode == 0, done.stderr
    return done.stdout


def data(pool: TestBroker, *args: str) -> Any:
    return json.loads(printed(pool, *args, "-o", "json"))


def cells(line: str) -> list[str]:
    return re.split(r"\s{2,}", line.strip())


def test_status_shows_leases_beside_processes(pool: TestBroker, found: str) -> None:
    """Each lease's below it, with pid, memory, user and how busy; then those that have none."""
    lines = printed(pool, "status").splitlines()
    (at,) = [n for n, line in enumerate(lines) if "└ trainer" in line]
    assert cells(lines[at])[2:] == ["4.0 GiB", "overuse", found[:8]]
    assert [cells(line) for line in lines[at + 1 : at + 4]] == [
        ["· python3", "pid 4711", "5.0 GiB", "ann", "80 %"],
        ["! jupyter", "pid 991", "500 MiB", "bob", "squatter"],
        ["! python3", "pid 77", "-", "someone-w…", "orphan"],
    ]


def test_words_of_findings_are_coloured(pool: TestBroker, found: str) -> None:
    """Red what takes from others, yellow what is left over."""
    with screen(pool, "status", columns=140) as shown:
        shown.process.wait(10)
        seen = shown.read()
    assert click.style("overuse", fg="red") in seen
    assert click.style("squatter", fg="red") in seen
    assert click.style("orphan", fg="yellow") in seen
    assert found[:8] in seen


def test_status_says_once_what_it_cannot_see_and_why_a_gpu_is_lent_to_nobody(
    pool: TestBroker, found: str
) -> None:
    """Below the picture, for the host, and not on each row."""
    tell(pool.client, SECOND, processes="", unseen=UNSEEN)
    text = printed(pool, "status")
    assert text.count(UNSEEN) == 1
    assert f"processes unseen on {HOST}: {UNSEEN}" in text
    assert f"{HOST}:1 is in quarantine: {QUARANTINE}" in text
    assert f"quarantined {QUARANTINE}" in text
    assert found[:8] in text


def test_eighty_columns_are_enough_for_processes(pool: TestBroker, found: str) -> None:
    """The words, the pids and the letters of a token are whole; sentences go on in a next line."""
    tell(
        pool.client, FIRST,
        processes=[process(4_194_304, name="a-program-with-a-long-name", finding="squatter",
                           memory_mb=143_771, busy_pct=100.0),
                   process(4711, token=found, memory_mb=143_771, user="somebody-longer")],
        degraded=found,
    )  # fmt: skip
    with screen(pool, "status", columns=80) as shown:
        shown.process.wait(10)
        lines = click.unstyle(shown.read()).splitlines()
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    for word in ("squatter", "pid 4194304", "degraded", found[:8], "140.4 GiB"):
        assert word in text
    assert UNSEEN in " ".join(text.split())
    assert QUARANTINE in " ".join(text.split())


def test_wide_and_json_carry_all(pool: TestBroker, found: str) -> None:
    """Since when a process is there, of which lease it was, the last error, the part's whole."""
    wide = printed(pool, "status", "-o", "wide")
    assert "lease 0000000000000000" in wide
    assert re.search(r"seen for \d+ days", wide)
    assert f"{SECOND} XID 79" in wide
    assert f"{BLIND} part of GPU-0" in wide
    assert re.search(rf"{found} \S+ pid \d+ overuse", wide)
    said = data(pool, "status")
    first, second, blind = said["devices"]
    assert [p["pid"] for p in first["processes"]] == [991, 4711, 77]
    assert {"kind": "squatter", "subject": "991"} in first["findings"]
    assert (second["quarantine"], second["xid"]) == (QUARANTINE, 79)
    assert (blind["processes"], blind["unseen"]) == (None, UNSEEN)
    assert first["telemetry"]["mps"] == 1
    assert said["leases"][0]["notices"] == ["overuse"]


def test_leases_say_what_is_found_of_them(pool: TestBroker, found: str) -> None:
    """Found now, or told to the holder; nothing where there is nothing."""
    pool.client.acquire("quiet", memory_mb=10, host=HOST)
    trainer, quiet = printed(pool, "leases").splitlines()[1:]
    assert cells(trainer)[-1] == "overuse"
    assert "overuse" not in quiet
    tell(pool.client, FIRST, idle=found)
    (lease, _) = data(pool, "leases")["leases"]
    assert (lease["findings"], lease["notices"]) == (["overuse", "idle"], ["overuse"])


def test_process_on_a_gpu_that_its_lease_does_not_hold_has_none_there(
    pool: TestBroker, found: str
) -> None:
    """It is shown where it is, and not as if it were allowed."""
    tell(pool.client, SECOND, processes=[process(5, token=found, finding="squatter")])
    rows = [cells(line) for line in printed(pool, "status").splitlines()]
    assert ["! python3", "pid 5", "100 MiB", "ann", "squatter"] in rows


def test_process_without_a_finding_is_called_nothing(pool: TestBroker, found: str) -> None:
    """No lease is no finding: it may be new, of the machine, or draw; only its host tells."""
    window = process(6, name="firefox") | {"graphics_only": True}
    late = process(7, name="late", token="0" * 16)
    tell(pool.client, SECOND, processes=[process(5), window, late], unseen="some have no pid")
    rows = [cells(line) for line in printed(pool, "status").splitlines()]
    assert ["· python3", "pid 5", "100 MiB", "ann"] in rows
    assert ["· firefox", "pid 6", "100 MiB", "ann", "graphics"] in rows
    assert ["· late", "pid 7", "100 MiB", "ann"] in rows
    assert f"processes unseen on {HOST}: some have no pid" in printed(pool, "status")


def test_events_of_findings_say_what_and_of_whom(pool: TestBroker, found: str) -> None:
    """The finding, the process, the code and what came of it, on a line."""
    stream = pool.client.keys.events
    for fields in (
        {"event": "finding_raised", "finding": "squatter", "device": FIRST, "host": HOST,
         "pid": "991"},
        {"event": "xid", "device": SECOND, "host": HOST, "xid": "79", "action": "hold"},
        {"event": "device", "device": SECOND, "host": HOST, "state": "lost", "reason": "is gone"},
        {"event": "process_ended", "device": FIRST, "host": HOST, "pid": "77",
         "signal": "SIGTERM", "reason": "orphan", "token": found, "agent": "trainer"},
    ):  # fmt: skip
        pool.client.redis.xadd(stream, fields)
    squatter, xid, lost, ended = printed(pool, "events", "-n", "4").splitlines()
    assert cells(squatter)[1:] == ["finding_raised", f"{HOST}:0", "squatter pid 991"]
    assert cells(xid)[1:] == ["xid", f"{HOST}:1", "XID 79 hold"]
    assert cells(lost)[1:] == ["device", f"{HOST}:1", "lost is gone"]  # as status has it
    assert cells(ended)[1:] == [
        "process_ended", "trainer", f"{HOST}:0", f"{found[:8]} pid 77 SIGTERM orphan",
    ]  # fmt: skip


def test_explain_names_the_processes_that_are_in_the_way(pool: TestBroker, found: str) -> None:
    """The explanation names the owner of the missing memory, and why no lease gets a GPU."""
    ask = ("--agent", "next", "--memory", "3GiB", "--host", HOST)
    devices = {d["uuid"]: d for d in data(pool, "explain", *ask, "--exclusive")["devices"]}
    assert devices[SECOND]["reason"] == "quarantined"
    assert devices[SECOND]["says"].endswith(QUARANTINE)
    tell(pool.client, FIRST, unleased_mb=3000)
    devices = {d["uuid"]: d for d in data(pool, "explain", *ask)["devices"]}
    assert devices[FIRST]["reason"] == "used_by_others"
    assert devices[FIRST]["says"] == (
        "3000 MiB used by processes without a lease (pid 991 jupyter, pid 77 python3)"
    )
    assert found
