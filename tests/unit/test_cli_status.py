"""`gpu-broker status` and what it shares: live, in colours, narrow, by name, completed."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click
import pytest

from agent_sdk import LeaseClient, Store
from agent_sdk.testing import TestBroker, running_broker
from broker.cli.table import bar, table
from broker.cli.watch import ENTER, LEAVE
from tests.api.brokers import GRANTING, PROGRAM, Broker, environment, eventually
from tests.servers import running

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger(__name__)

SHOWN_S = 1.0
"""Promised from a lease to its line."""


@pytest.fixture(scope="module")
def pool() -> Iterator[TestBroker]:
    with running_broker() as running:
        yield running


@pytest.fixture(autouse=True)
def clean(pool: TestBroker) -> Iterator[None]:
    yield
    for lease in pool.client.leases():
        pool.client.release(lease.token)


class Terminal:
    """A program on a terminal of its own.

    Attributes:
        seen: everything that it wrote.
    """

    def __init__(self, *args: str, columns: int, lines: int, **settings: str) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.process = subprocess.Popen(
            [PROGRAM, *args], env=environment(TERM="xterm", **settings),
            stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self.seen = ""

    def read(self, seconds: float = 0.05) -> str:
        """All that it wrote up to now."""
        while select.select([self._ours], [], [], seconds)[0]:
            try:
                more = os.read(self._ours, 65536)
            except OSError:  # its end
                break
            if not more:
                break
            self.seen += more.decode()
        return self.seen

    @property
    def picture(self) -> str:
        """The last picture, as far as it is drawn."""
        return self.read().rpartition("\x1b[H")[2]

    def end(self, name: signal.Signals = signal.SIGINT) -> int:
        """End it by a signal; its exit code."""
        self.process.send_signal(name)
        code = self.process.wait(5)
        self.read()
        return code

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


@contextmanager
def terminal(
    pool: TestBroker, *args: str, columns: int = 120, lines: int = 40, **settings: str
) -> Iterator[Terminal]:
    opened = Terminal(
        *args, columns=columns, lines=lines,
        **{"REDIS_URL": pool.url, "GPU_BROKER_HOSTNAME": pool.host, **settings},
    )  # fmt: skip
    try:
        yield opened
    finally:
        opened.close()


def printed(pool: TestBroker, *args: str) -> str:
    """What a call prints where nobody looks."""
    return subprocess.run(
        [PROGRAM, *args], env=environment(REDIS_URL=pool.url, GPU_BROKER_HOSTNAME=pool.host),
        capture_output=True, text=True, check=True, timeout=20,
    ).stdout  # fmt: skip


def test_colours_on_a_terminal_alone_and_not_against_the_will(pool: TestBroker) -> None:
    """Words say the same: NO_COLOR, --no-color and a pipe lose nothing."""
    for args, settings, coloured in (
        ((), {}, True), ((), {"NO_COLOR": "1"}, False), (("--no-color",), {}, False),
        ((), {"NO_COLOR": ""}, True), ((), {"NO_COLOR": "please"}, False),
    ):  # fmt: skip
        with terminal(pool, *args, "status", **settings) as shown:
            shown.process.wait(10)
            assert ("\x1b[3" in shown.read()) is coloured, (args, settings)
            assert "24.0 GiB" in shown.seen
    assert "\x1b" not in printed(pool, "status")


def test_eighty_columns_are_enough(pool: TestBroker) -> None:
    """No line of status or queue is longer; what gives way ends in an ellipsis."""
    pool.client.acquire("an-agent-with-quite-a-long-name/of/team-seven", memory_mb=8192)
    for command in ("status", "queue"):
        with terminal(pool, command, columns=80) as shown:
            shown.process.wait(10)
            lines = click.unstyle(shown.read()).splitlines()
            assert max(map(len, lines)) <= 80
            if command == "status":
                assert any("…" in line for line in lines)


def test_live_status_shows_a_lease_within_a_second(pool: TestBroker) -> None:
    """Taken by another process; drawn in place on the other screen, which is left behind."""
    with terminal(pool, "status", "-w", "60") as shown:
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


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGINT])
def test_terminal_is_left_as_it_was(pool: TestBroker, name: signal.Signals) -> None:
    """Whatever ends it."""
    with terminal(pool, "status", "-w") as shown:
        eventually(lambda: "24.0 GiB" in shown.picture, 10)
        assert shown.end(name) == (143 if name == signal.SIGTERM else 0)
        assert shown.seen.endswith(LEAVE)


def test_live_status_is_cut_at_the_height(pool: TestBroker) -> None:
    """With how much is missing."""
    for n in range(12):
        pool.client.acquire(f"a{n}", memory_mb=10)
    with terminal(pool, "status", "-w", lines=10) as shown:
        eventually(lambda: "more lines" in shown.picture, 10)
        assert shown.picture.count("\n") == 9
        shown.end()


def test_live_status_says_how_old_its_picture_is() -> None:
    """While the store is away; and goes on when it is back."""
    with running() as server, Broker(**GRANTING, REDIS_URL=server.url) as broker:
        broker.wait()
        shown = Terminal("status", "-w", columns=120, lines=40, REDIS_URL=server.url)
        try:
            eventually(lambda: "h1:0" in shown.picture, 10)
            server.kill()
            eventually(lambda: "disconnected" in shown.picture, 10)
            assert "h1:0" in eventually(lambda: "s old" in shown.picture and shown.picture, 5)
            server.start()
            eventually(lambda: "h1:0" in shown.picture and "disc" not in shown.picture, 15)
        finally:
            shown.close()


def test_live_status_in_a_pipe_is_a_line_for_each_picture(pool: TestBroker) -> None:
    """As JSON, one object each, and only when something is other."""
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
    """Of each shell; bash takes its own."""
    script = subprocess.check_output(
        [PROGRAM, "completion", shell], env=environment(), text=True, timeout=20
    )
    assert "_GPU_BROKER_COMPLETE" in script
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


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

    def complete(url: str) -> list[str]:
        done = subprocess.run(
            [PROGRAM], capture_output=True, text=True, check=False, timeout=20,
            env=environment(REDIS_URL=url, _GPU_BROKER_COMPLETE="bash_complete", COMP_WORDS=words,
                            COMP_CWORD=str(len(words.split(" ")) - 1)),
        )  # fmt: skip
        assert done.stderr == ""
        return [line.partition(",")[2] for line in done.stdout.split()]

    assert offered.format(host=pool.host, token=lease.token) in complete(pool.url)
    if "{" in offered:
        assert complete("redis://127.0.0.1:1") == []


def test_bar_and_table() -> None:
    """Shares in proportion, never longer than the bar; columns give way in their order."""
    assert bar([("#", 50), ("x", 25)], 100, 8) == "####xx··"
    assert bar([("#", 999)], 100, 4) == "####"
    assert bar([], 0, 4) == "····"
    narrow = table(
        ("A", "B"), [("x" * 30, click.style("y" * 30, fg="red"))], width=40, gives=(1, 0)
    )
    assert [len(click.unstyle(line)) for line in narrow.splitlines()] == [33, 40]
    assert not re.search(r" $", narrow, re.MULTILINE)


def test_client_reads_the_whole_pool_at_once(pool: TestBroker) -> None:
    """What scene() says is what its parts say."""
    with LeaseClient(Store(pool.url), hostname=pool.host) as client:
        client.acquire("analyst", memory_mb=10)
        scene = client.scene()
        assert tuple(scene.devices.values()) == client.devices()
        assert tuple(scene.leases.values()) == client.leases()
        assert tuple(scene.hosts.values()) == client.hosts()
        assert scene.held["analyst"] == (10, 1)
        again = client.scene_again(scene, [lease.token for lease in client.leases()], [])
        assert again.leases == scene.leases
