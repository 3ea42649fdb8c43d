"""`gpu-broker status` and what it shares: live, in colours, narrow, by name, completed."""

from __future__ import annotations

import json
import logging
import re
import signal
import socket
import subprocess
import time
from typing import TYPE_CHECKING

import click
import pytest

from agent_sdk import LeaseClient, StillWaiting, Store
from agent_sdk.testing import TestBroker, running_broker
from broker.cli.complete import DEADLINE_S
from broker.cli.watch import watch
from broker.text.screen import ENTER, LEAVE, bare
from broker.text.table import bar, cut, table
from tests.api.brokers import GRANTING, PROGRAM, Broker, environment, eventually
from tests.program import called
from tests.servers import running
from tests.unit.brokers import broker_of_the_file
from tests.unit.screens import Screen, screen

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent_sdk.request import LeaseOptions

log = logging.getLogger(__name__)

SHOWN_S = 1.0
"""Promised from a lease to its line."""

START_S = 1.0
"""Room for the interpreter's start on a busy machine."""


pool = broker_of_the_file()
"""Two devices of 24576 MiB on one host."""


@pytest.fixture(autouse=True)
def clean(pool: TestBroker) -> Iterator[None]:
    yield
    for lease in pool.client.leases():
        pool.client.release(lease.token)


def printed(pool: TestBroker, *args: str) -> str:
    """Return the output of a call without a terminal."""
    done = called(*args, REDIS_URL=pool.url, GPU_BROKER_HOSTNAME=pool.host)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_colours_on_a_terminal_alone_and_not_against_the_will(pool: TestBroker) -> None:
    """Words say the same: NO_COLOR, --no-color and a pipe lose nothing."""
    for args, settings, coloured in (
        ((), {}, True), ((), {"NO_COLOR": "1"}, False), (("--no-color",), {}, False),
        ((), {"NO_COLOR": ""}, True), ((), {"NO_COLOR": "please"}, False),
    ):  # fmt: skip
        with screen(pool, *args, "status", **settings) as shown:
            shown.process.wait(10)
            assert ("\x1b[3" in shown.read()) is coloured, (args, settings)
            assert "24.0 GiB" in shown.seen
    assert "\x1b" not in printed(pool, "status")


def looked_at(pool: TestBroker, command: str, columns: int) -> list[str]:
    """The lines that a command prints on a terminal."""
    with screen(pool, command, columns=columns) as shown:
        shown.process.wait(10)
        return click.unstyle(shown.read()).splitlines()


def test_eighty_columns_are_enough() -> None:
    """No line of status or queue is longer; what gives way ends in an ellipsis, GPUs keep their
    index and tokens the letters that `explain` needs; a wide terminal has the sentence.
    """
    long = "an-agent-with-quite-a-long-name/of/team-seven"
    with running_broker() as pool:
        report_long(pool)
        pool.client.acquire(long, memory_mb=120_000, host=LONG_HOST)
        pool.client.acquire(long, host="elsewhere", on_unavailable="cpu")
        ask: LeaseOptions = {
            "host": LONG_HOST,
            "memory_mb": 100_000,
            "devices": 2,
            "exclusive": True,
        }
        with pytest.raises(StillWaiting) as still:
            pool.client.acquire(long, **ask, wait_s=0.01, keep_place=True)
        token = str(still.value.token)
        queue = looked_at(pool, "queue", 80)
        assert (max(map(len, queue)), queue[1].split()[0]) == (80, token[:8])
        assert f"{token}  {long}" in "\n".join(wide := looked_at(pool, "queue", 220))
        assert "it is next: it is served as soon as enough is free" in wide[1]
        pool.client.set_policy(safe_mode=True)
        status = looked_at(pool, "status", 80)
        assert max(map(len, status)) <= 80
        cut_names = re.findall(r"^dgx-\w+…:(\d) ", "\n".join(status), re.MULTILINE)
        assert cut_names == ["0", "1"]
        assert "SAFE_MODE is ON: no GPU leases are given" in status
        assert looked_at(pool, "queue", 80)[1].split()[-1] == "safe_mo…"


LONG_HOST = "dgx-cluster-7.rack12.example.org"


def report_long(pool: TestBroker) -> None:
    """Two devices of a host with a long name, with numbers as large as they come."""
    fields = {
        "name": "NVIDIA H200 141GB HBM3e", "model": "H200", "total_mb": 143_771, "system_mb": 512,
        "used_mb": 0, "state": "ok", "simulated": 1, "utilization_gpu_pct": 100,
    }  # fmt: skip
    devices = tuple((f"GPU-{n}", (("index", n), *fields.items())) for n in range(2))
    pool.client.report(
        LONG_HOST, devices, deadline_ms=86_400_000, sampled_ms=0, epoch="", safe_mode=False,
        version="testing",
    )  # fmt: skip


def test_live_status_shows_a_lease_within_a_second(pool: TestBroker) -> None:
    """Taken by another process; drawn in place on the other screen, which is left behind."""
    with screen(pool, "status", "-w", "60") as shown:
        eventually(lambda: "24.0 GiB" in shown.picture, 10)
        assert shown.seen.startswith(ENTER)
        took = []
        for n in range(5):
            time.sleep(0.2)  # the picture before it is at rest
            began = time.monotonic()
            lease = pool.client.acquire(f"newcomer-{n}", memory_mb=10)
            eventually(lambda n=n: f"newcomer-{n}" in shown.picture, 5, 0.01)
            took.append(time.monotonic() - began)
            pool.client.release(lease)
        log.info("shown after %s ms", [round(s * 1000) for s in took])
        assert max(took) < SHOWN_S
        eventually(lambda: "newcomer" not in shown.picture, 5)
        assert shown.end() == 0
        assert shown.seen.endswith(LEAVE)


def test_live_status_misses_nothing_between_two_looks(
    pool: TestBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    """An event right after the first picture is news, not history."""
    looks = 0

    def picture() -> str:
        nonlocal looks
        looks += 1
        if looks == 1:
            pool.client.acquire("newcomer", memory_mb=10)
        elif any(lease.agent == "newcomer" for lease in pool.client.leases()):
            raise KeyboardInterrupt
        return "nobody"

    began = time.monotonic()
    watch(pool.client, 60, picture, lines=False)
    assert time.monotonic() - began < SHOWN_S
    assert re.fullmatch(r"-- \d\d:\d\d:\d\d\nnobody\n", capsys.readouterr().out)


def test_live_status_follows_the_size_of_the_window(pool: TestBroker) -> None:
    """Without an event, in height and in width; wide is cut to it too."""
    with screen(pool, "status", "-w", "60", "-o", "wide", columns=100, lines=30) as shown:
        eventually(lambda: "24.0 GiB" in shown.picture, 10)
        assert max(map(len, shown.lines)) == 100
        shown.resize(columns=60, lines=5)
        eventually(lambda: "more lines" in shown.picture, 5)
        assert max(map(len, shown.lines)) == 60
        shown.resize(columns=60, lines=2)
        eventually(lambda: "5 more lines" in shown.lines[0], 5)


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGINT])
def test_terminal_is_left_as_it_was(pool: TestBroker, name: signal.Signals) -> None:
    """Whatever ends it."""
    with screen(pool, "status", "-w") as shown:
        eventually(lambda: "24.0 GiB" in shown.picture, 10)
        assert shown.end(name) == (143 if name == signal.SIGTERM else 0)
        assert shown.seen.endswith(LEAVE)


def test_live_status_is_cut_at_the_height(pool: TestBroker) -> None:
    """With how much is missing."""
    for n in range(12):
        pool.client.acquire(f"a{n}", memory_mb=10)
    with screen(pool, "status", "-w", lines=10) as shown:
        eventually(lambda: "more lines" in shown.picture, 10)
        assert shown.picture.count("\n") == 9
        shown.end()


def test_live_status_says_how_old_its_picture_is() -> None:
    """While the store is away; and goes on when it is back. In a pipe stdout is pictures alone."""
    with running() as server, Broker(**GRANTING, REDIS_URL=server.url) as broker:
        broker.wait()
        shown = Screen("status", "-w", columns=120, lines=40, REDIS_URL=server.url)
        piped = subprocess.Popen(
            [PROGRAM, "status", "-w", "-o", "json"], env=environment(REDIS_URL=server.url),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert piped.stdout is not None
        try:
            eventually(lambda: "h1:0" in shown.picture, 10)
            assert json.loads(piped.stdout.readline())["devices"]
            server.kill()
            eventually(lambda: "disconnected" in shown.picture, 10)
            assert "h1:0" in eventually(lambda: "s old" in shown.picture and shown.picture, 5)
            server.start()
            eventually(lambda: "h1:0" in shown.picture and "disc" not in shown.picture, 15)
            piped.send_signal(signal.SIGINT)
            out, said = piped.communicate(timeout=10)
            assert all(json.loads(line)["devices"] is not None for line in out.splitlines())
            assert said.count("\n") == said.count("disconnected") == 1
        finally:
            shown.close()
            piped.kill()
            piped.wait()


def test_live_status_in_a_pipe_is_a_line_for_each_picture(pool: TestBroker) -> None:
    """A picture is a JSON object, printed only when something has changed."""
    process = subprocess.Popen(
        [PROGRAM, "status", "-w", "-o", "json"], env=environment(REDIS_URL=pool.url),
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    first = json.loads(process.stdout.readline())
    assert (first["schema"], first["leases"]) == (1, [])
    lease = pool.client.acquire("analyst", memory_mb=10)
    until = time.monotonic() + 5
    while not (found := json.loads(process.stdout.readline()))["leases"]:
        assert time.monotonic() < until
    assert found["leases"][0]["token"] == lease.token
    process.send_signal(signal.SIGINT)
    process.stdout.close()
    assert process.wait(5) == 0


def test_names_are_for_other_commands(pool: TestBroker) -> None:
    """One a line: UUIDs, tokens, hosts; wide has what text has not."""
    lease = pool.client.acquire("analyst", memory_mb=10)
    uuids = [device.uuid for device in pool.client.devices()]
    assert printed(pool, "status", "-o", "name").split() == uuids
    assert printed(pool, "leases", "-o", "name").split() == [lease.token]
    assert printed(pool, "hosts", "-o", "name").split() == [pool.host]
    assert printed(pool, "queue", "-o", "name") == ""
    for command, extra in (("status", uuids[0]), ("leases", str(lease.fence)), ("hosts", "24 h")):
        assert extra in printed(pool, command, "-o", "wide")
        assert extra not in printed(pool, command)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str) -> None:
    """Each shell has its script; bash takes its own."""
    script = called("completion", shell).stdout
    assert "_GPU_BROKER_COMPLETE" in script
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def completed(url: str, words: str) -> list[str]:
    """Complete a line that ends in the middle, as a shell asks for it."""
    at = str(len(words.split(" ")) - 1)
    asked = {"_GPU_BROKER_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": at}
    done = called(REDIS_URL=url, **asked)
    assert done.stderr == ""
    return [line.partition(",")[2] for line in done.stdout.split()]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("gpu-broker st", "status"),
        ("gpu-broker drain ", "{host}"),
        ("gpu-broker undrain SIM", "SIM-{host}-0"),
        ("gpu-broker leases --agent ", "analyst"),
        ("gpu-broker revoke ", "{token}"),
        ("gpu-broker events --type gr", "granted"),
    ],
)
def test_shell_completes_what_the_pool_knows(pool: TestBroker, words: str, offered: str) -> None:
    """Commands, hosts, GPUs, agents, tokens; nothing, and no error, when the store is away."""
    lease = pool.client.acquire("analyst", memory_mb=10)
    assert offered.format(host=pool.host, token=lease.token) in completed(pool.url, words)
    if "{" in offered:
        assert completed("redis://127.0.0.1:1", words) == []


def test_completion_does_not_wait_for_a_store_that_hangs() -> None:
    """A keystroke: half a second, and silence."""
    with socket.create_server(("127.0.0.1", 0)) as hangs:
        began = time.monotonic()
        assert completed(f"redis://127.0.0.1:{hangs.getsockname()[1]}", "gpu-broker drain ") == []
        assert time.monotonic() - began < 2 * DEADLINE_S + START_S


def test_bar_and_table() -> None:
    """Shares in proportion, never longer than the bar; columns give way in their order."""
    assert bar([("#", 50), ("x", 25)], 100, 8) == "####xx··"
    assert bar([("#", 999)], 100, 4) == "####"
    assert bar([], 0, 4) == "····"
    assert [cut("gpu-host-3:11", n) for n in (13, 12, 8)] == [
        "gpu-host-3:11",
        "gpu-host…:11",
        "gpu-…:11",
    ]
    assert cut("a" * 9 + ":12345678", 8) == "aaaaaaa…"
    assert cut("gpu-host-3:11", 2) == "…:"
    narrow = table(
        ("A", "B"), [("x" * 30, click.style("y" * 30, fg="red"))], width=40, gives=(1, 0)
    )
    assert [len(bare(line)) for line in narrow.splitlines()] == [33, 40]
    assert not re.search(r" $", narrow, re.MULTILINE)


def test_client_reads_the_whole_pool_at_once(pool: TestBroker) -> None:
    """scene() says the same as its parts."""
    with LeaseClient(Store(pool.url), hostname=pool.host) as client:
        client.acquire("analyst", memory_mb=10)
        scene = client.scene()
        assert tuple(scene.devices.values()) == client.devices()
        assert tuple(scene.leases.values()) == client.leases()
        assert tuple(scene.hosts.values()) == client.hosts()
        assert scene.held["analyst"] == (10, 1)
        again = client.scene_again(scene, [lease.token for lease in client.leases()], [])
        assert again.leases == scene.leases
