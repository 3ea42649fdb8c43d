"""Text of others is shown as print by every command, and no command prints past that."""

from __future__ import annotations

import ast
import json
import logging
import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

import broker
from agent_sdk import LeaseClient, StillWaiting, Store
from agent_sdk.testing import HOST, _report
from broker import logs
from broker.cli import COMMANDS
from broker.cli.complete import hosts_and_devices
from broker.run.progress import Progress
from broker.text.printable import printable
from broker.text.screen import MARK, bare, one_line, paint
from broker.text.table import table
from tests.api.brokers import PROGRAM, environment
from tests.program import called
from tests.unit.screens import Screen

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers import Server

BROKER = Path(broker.__file__).parent

FAKE = "FAKE-LINE"

HOSTILE = (
    "\x1b]0;owned\x07\x1b[2J\x1b]52;c;aGk=\x07\x9b31mRED\u202egnihton\u2066\u200b\x7f"
    f"\r\n{FAKE}\u2028{FAKE}\x85{FAKE}"
)
"""The window's title, the screen, the clipboard, colours by C1, bidi, lines of its own."""

PRINTS = {"echo", "secho", "print", "writelines", "echo_via_pager", "stdout.write", "stderr.write"}

MAY_PRINT = {"text/screen.py"}
"""`run/progress.py` writes to a descriptor, for stdout is its command's; it has a test."""


def unprintable(text: str) -> set[str]:
    """Find what a terminal may act on; line ends of ours are none of it."""
    return {letter for letter in text if not (letter.isprintable() or letter == "\n")}


@pytest.fixture(scope="module")
def pool(server: Server) -> Iterator[dict[str, str]]:
    """A pool in which every text that a client may write is hostile; the environment for it."""
    name = f"hostile-{uuid4().hex[:6]}"
    with LeaseClient(Store(server.url), pool=name, hostname=HOST) as client:
        _report(client, 2, 1000)
        held = client.acquire("holder", memory_mb=900)
        client.acquire("second", memory_mb=900)
        with pytest.raises(StillWaiting):
            client.acquire("waits", memory_mb=900, wait_s=0.01, keep_place=True, token=WAITER)
        client.acquire("calm", memory_mb=1, host=HOST, on_unavailable="cpu")
        client.drain("device", f"SIM-{HOST}-1", why="\u202e\x9b2J")  # what the script lets pass
        poison(client, held.token)
        yield {"REDIS_URL": server.url, "GPU_BROKER_POOL": name, "GPU_BROKER_HOSTNAME": HOST}


WAITER = "waiter-of-hostile"


def poison(client: LeaseClient, token: str) -> None:
    """Write what an agent with Redis credentials can: anything, anywhere."""
    redis, keys = client.redis, client.keys
    process: dict[str, Any] = {"pid": 1, "memory_mb": 5, "name": HOSTILE, "user": HOSTILE,
                               "token": "", "finding": "", "since_ms": 1, "busy_pct": None,
                               "start": 1}  # fmt: skip
    names = ("name", "model", "reason", "quarantine", "parent", "nvml_error")
    texts = dict.fromkeys(names, HOSTILE)
    for n in range(2):
        redis.hset(f"{keys.base}:device:SIM-{HOST}-{n}", mapping=texts)
    redis.hset(f"{keys.base}:device:SIM-{HOST}-0", "processes", json.dumps([process]))
    redis.hset(f"{keys.base}:device:SIM-{HOST}-1", mapping={"processes": "", "unseen": HOSTILE})
    redis.hset(f"{keys.base}:host:{HOST}", "version", HOSTILE)
    redis.hset(f"{keys.base}:pool", "xid_actions", HOSTILE)
    for record in (token, WAITER):
        mapping = dict.fromkeys(("agent", "client", "pid", "owner", "reason", "notice"), HOSTILE)
        redis.hset(f"{keys.base}:record:{record}", mapping=mapping)
    day = datetime.now(UTC).strftime("%Y-%m-%d")
    redis.hset(keys.usage(day), f"{HOSTILE} {HOSTILE} {HOSTILE}", "gpu_ms=3600000 leases=1")
    redis.hset(keys.usage_of_hosts(day), f"{HOSTILE}|{HOSTILE}", f"gpu_ms=5 hours={HOSTILE}")
    finished = dict.fromkeys(("token", "agent", "team", "owner", "outcome"), HOSTILE)
    finished |= {"granted_at_ms": "1", "ended_at_ms": "5", "gpus": "1", "peak_mb": "7", "mb": "9"}
    line = " ".join(f"{name}={value}" for name, value in finished.items())
    redis.xadd(keys.history, {"lease": f"{line} devices=gpu=9 on {HOSTILE}|{HOSTILE}"})
    told = dict.fromkeys(("shown", "on", "by", "error", "disabled", "tested"), HOSTILE)
    redis.hset(keys.hook("ops"), mapping={"url": "http://x.example", "failed": 1, **told})
    redis.sadd(keys.hooks, "ops", HOSTILE)
    strange = f"host-{HOSTILE}"
    redis.sadd(f"{keys.base}:hosts", strange)
    about = {"version": "1", "reported_ms": "1", "deadline_ms": "1", "drained": "0"}
    redis.hset(f"{keys.base}:host:{strange}", mapping=about)
    for event in ("drained", "finding_raised", "policy", "device", "process_ended", HOSTILE):
        fields = ("host", "by", "reason", "agent", "state", "policy", "finding", "pid", "action",
                  "signal", "token", "device")  # fmt: skip
        redis.xadd(f"{keys.base}:events", {"event": event, **dict.fromkeys(fields, HOSTILE)})


CALLS: dict[str, list[tuple[str, ...]]] = {
    "serve": [],  # what it prints is its own settings; its log has a test below
    "host": [],
    "run": [("run", "--wait", "0", "--memory", "1GiB", "--", "true")],
    "acquire": [("acquire", "--wait", "0", "--memory", "1GiB")],
    "hold": [("hold", "--wait", "0", "--memory", "1GiB")],
    "adopt": [("adopt", "--pid", "1")],
    "extend": [("extend", WAITER, "1h")],
    "release": [("release", "nobody-has-this-token")],
    "ask": [("ask", WAITER, "--for", WAITER), ("ask", WAITER)],
    "wait": [("wait", WAITER, "--timeout", "0.1")],
    "mcp": [("mcp", "--help")],  # what it prints is the protocol's
    "status": [("status",), ("status", "-o", "wide"), ("status", "-o", "json"),
               ("status", "-o", "name")],
    "top": [("top",), ("top", "-o", "json")],
    "queue": [("queue",), ("queue", "-o", "wide"), ("queue", "-o", "json"),
              ("queue", "-o", "name")],
    "explain": [("explain", WAITER), ("explain", "--agent", "x", "--memory", "1GiB"),
                ("explain", WAITER, "-o", "json")],
    "events": [("events", "-n", "100"), ("events", "-o", "json"), ("events", "-o", "name")],
    "leases": [("leases",), ("leases", "-o", "wide"), ("leases", "-o", "json"),
               ("leases", "-o", "name"), ("leases", "--host", f"{HOST}:0")],
    "hosts": [("hosts",), ("hosts", "-o", "wide"), ("hosts", "-o", "json"),
              ("hosts", "-o", "name")],
    "teams": [("teams",), ("teams", "-o", "wide"), ("teams", "-o", "json"),
              ("teams", "-o", "name")],
    "usage": [("usage",), ("usage", "--by", "host,model", "--day"), ("usage", "-o", "csv"),
              ("usage", "-o", "json"), ("usage", "--advise"), ("usage", "--advise", "-o", "csv")],
    "history": [("history",), ("history", "-o", "json"), ("history", "-o", "jsonl"),
                ("history", "-o", "csv"), ("history", "export", "--format", "csv", "-"),
                ("history", "export", "--format", "jsonl", "-")],
    "revoke": [("revoke", "nobody-has-this-token", "--reason", "x"),
               ("revoke", "--agent", "calm", "--reason", "x")],
    "drain": [("drain", "nowhere"), ("drain", HOST)],
    "undrain": [("undrain", "nowhere")],
    "forget": [("forget", "nowhere"), ("forget", HOST)],
    "release-driver": [("release-driver", "nowhere"), ("release-driver", HOST, "--end")],
    "keys": [("keys", "list")],
    "hooks": [("hooks", "list"), ("hooks", "list", "-o", "json"), ("hooks", "list", "-o", "name"),
              ("hooks", "show", "ops"), ("hooks", "show", HOSTILE), ("hooks", "remove", HOSTILE),
              ("hooks", "add", "http://x.example/" + HOSTILE), ("hooks", "add", "no://x"),
              ("hooks", "enable", "ops")],
    "policy": [("policy", "get"), ("policy", "get", "-o", "json")],
    "functions": [("functions", "list")],
    "doctor": [("doctor",), ("doctor", "-o", "json")],
    "guard": [("guard", "--always", "--offline")],
    "skill": [("skill", "show")],
    "completion": [],
}  # fmt: skip
"""Every command, and how it is called."""


def test_every_command_is_called_here() -> None:
    """A new one has to be added."""
    assert CALLS.keys() == COMMANDS.keys()


@pytest.mark.parametrize("call", [c for calls in CALLS.values() for c in calls], ids=" ".join)
def test_command_shows_hostile_text_as_print(
    pool: dict[str, str], tmp_path: Path, call: tuple[str, ...]
) -> None:
    """On stdout and stderr; what others wrote begins no line either."""
    settings = pool | {"GPU_BROKER_STATE_DIR": str(tmp_path)}
    if call[0] in {"run", "acquire", "hold"}:  # they write to a descriptor
        done = subprocess.run([PROGRAM, *call], env=environment(**settings), capture_output=True,
                              text=True, check=False)  # fmt: skip
    else:
        done = called(*call, **settings)
    said = done.stdout + done.stderr
    assert said
    assert not unprintable(said)
    assert not [line for line in said.splitlines() if line.startswith(FAKE)]


def test_terminal_gets_colours_and_no_other_sequence(pool: dict[str, str]) -> None:
    """On a terminal, where colours are: of sequences these alone."""
    text = ""
    for call in (("status",), ("events", "-n", "100")):
        shown = Screen(*call, columns=200, lines=100, **pool)
        try:
            while shown.process.poll() is None:
                shown.read()
            text += shown.read().replace("\r\n", "\n")
        finally:
            shown.close()
    coloured = text
    for code in (31, 32, 33, 0):
        coloured = coloured.replace(f"\x1b[{code}m", "")
    assert coloured != text
    assert not unprintable(coloured)


def test_completion_offers_no_hostile_name(
    pool: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell would write it on the command line."""
    for name, value in pool.items():
        monkeypatch.setenv(name, value)
    found = hosts_and_devices(None, None, "")  # type: ignore[arg-type] # it needs neither context nor parameter
    assert f"SIM-{HOST}-0" in found
    assert not unprintable("".join(found))


def test_run_tells_hostile_text_as_print() -> None:
    """`run` says what others wrote while it waits: its own way to stderr does the same."""
    read, write = os.pipe()
    teller = Progress("text")
    teller._out = write
    teller.failed("refused", HOSTILE)
    os.close(write)
    with os.fdopen(read, newline="") as said:
        assert not unprintable(said.read())


def test_log_shows_hostile_text_as_print(capfd: pytest.CaptureFixture[str]) -> None:
    """The message, its values and its error, as text and as JSON."""
    handlers, level = logging.root.handlers, logging.root.level
    try:
        for form in ("text", "json"):
            logs.configure(form, replica="r")  # type: ignore[arg-type] # both are log forms
            error = ValueError(HOSTILE)
            logging.getLogger("x").error("a process: %s", HOSTILE, exc_info=error)
            said = capfd.readouterr().err
            assert "owned" in said
            assert not unprintable(said)
    finally:
        logging.root.handlers, logging.root.level = handlers, level


def test_nothing_prints_but_by_the_screen() -> None:
    """No file of the command line's calls click's or Python's printing itself."""
    found = set()
    for folder in ("cli", "run", "text"):
        for path in (BROKER / folder).rglob("*.py"):
            name = str(path.relative_to(BROKER))
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call):
                    words = ast.unparse(node.func).split(".")
                    last = {words[-1], ".".join(words[-2:])}
                    found |= {name} if last & PRINTS else set()
    assert found == MAY_PRINT


LETTERS = (
    "\x00", "\x1b", "\x7f", "\x85", "\x9b", "\u061c", "\u200e", "\u202a", "\u202e", "\u2066",
    "\u2069", "\u2028", "\u2029", "\ufeff", "\udc80", "\n", "\r", "\t", "\U000e0041", MARK,
)  # fmt: skip


@pytest.mark.parametrize(
    "letter", LETTERS, ids=lambda each: "mark" if each == MARK else ascii(each)
)
def test_printable_escapes(letter: str) -> None:
    """One at a time, in the middle of words; also in colours, cells and lines."""
    shown = printable(f"a{letter}b")
    assert shown.isprintable()
    assert shown != f"a{letter}b"
    assert bare(paint(f"a{letter}b", "red")) == shown
    if letter != MARK:
        assert bare(one_line(f"{paint('x', 'red')}{letter}")) == f"x{printable(letter)}"
        assert len(table(("A",), [(f"a{letter}b",)]).splitlines()) == 2


def test_print_stays_as_it_is() -> None:
    """Names in any script, and an emoji."""
    text = "GPU-0 grün 显卡 עברית 🎉 NVIDIA™ ³²"
    assert printable(text) == text
