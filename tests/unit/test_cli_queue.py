"""`gpu-broker queue` and `gpu-broker explain`, as a person and a script see them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from agent_sdk import LeaseClient, StillWaiting, Store
from agent_sdk.testing import running_broker
from broker.cli import main
from broker.text.units import Size

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def waiting() -> Iterator[tuple[CliRunner, str]]:
    """A runner, and the token of one that waits for a GPU of which 300 MiB are free."""
    with (
        running_broker(devices=1, memory_mb=1000) as broker,
        LeaseClient(Store(broker.url), hostname=broker.host) as client,
    ):
        client.acquire("holder", memory_mb=700, ttl_s=600)
        with pytest.raises(StillWaiting) as still:
            client.acquire("analyst", memory_mb=900, wait_s=0.01, keep_place=True)
        runner = CliRunner(env={"REDIS_URL": broker.url})
        yield runner, str(still.value.token)
        client.release(str(still.value.token))


def run(runner: CliRunner, *args: str) -> tuple[int, str]:
    """Exit code and all that was printed."""
    result = runner.invoke(main, args)
    return result.exit_code, result.output


def test_queue_shows_who_waits(waiting: tuple[CliRunner, str]) -> None:
    """One line for each, with the whole token, what it asks and where it stands."""
    code, text = run(waiting[0], "queue")
    assert code == 0
    words = text.splitlines()[1].split()
    assert 0 <= int(words.pop(6)) < 60  # seconds of waiting
    assert words == [
        waiting[1], "analyst", "900", "MiB", "test-host", "0", "s", "next", "1", "full",
    ]  # fmt: skip
    assert run(waiting[0], "queue", "--agent", "nobody") == (
        0,
        "no such request waits; 1 other waits\n",
    )


def test_queue_says_why_also_when_no_device_is_the_reason() -> None:
    """The code stands where else the devices are counted."""
    with (
        running_broker(devices=1, memory_mb=1000) as broker,
        LeaseClient(Store(broker.url), hostname=broker.host) as client,
    ):
        client.acquire("holder", memory_mb=700, ttl_s=600)
        with pytest.raises(StillWaiting):
            client.acquire("analyst", memory_mb=900, wait_s=0.01, keep_place=True)
        client.set_policy(safe_mode=True)
        code, text = run(CliRunner(env={"REDIS_URL": broker.url}), "queue")
        assert (code, text.splitlines()[1].split()[-1]) == (0, "safe_mode")


def test_queue_as_json_is_for_scripts(waiting: tuple[CliRunner, str]) -> None:
    """The same with every field, under a schema."""
    code, text = run(waiting[0], "queue", "-o", "json")
    data = json.loads(text)
    assert (code, data["schema"]) == (0, 1)
    assert [(x["token"], x["place"], x["memory_mb"]) for x in data["queue"]] == [
        (waiting[1], 0, 900)
    ]


def test_status_says_that_somebody_waits(waiting: tuple[CliRunner, str]) -> None:
    """And by which command one sees who."""
    assert "1 waiting: gpu-broker queue" in run(waiting[0], "status")[1]


def test_explain_answers_first(waiting: tuple[CliRunner, str]) -> None:
    """It shows the request, what would fit, when, and each device; eight letters are enough."""
    code, text = run(waiting[0], "explain", waiting[1][:8])
    assert code == 0
    lines = text.splitlines()
    assert lines[0].startswith("it is next")
    assert "would fit: 300 MiB fits now on test-host GPU 0" in lines
    assert any(line.startswith("in about 10 min: if holder does not renew") for line in lines)
    assert any(line.startswith("test-host:0") and " full " in line for line in lines)


def test_explain_of_a_request_makes_none(waiting: tuple[CliRunner, str]) -> None:
    """It shows the outcome as text and as JSON; nothing joins the queue."""
    ask = ("explain", "--agent", "me", "--memory", "0.6GiB", "--host", "test-host")
    code, text = run(waiting[0], *ask)
    assert (code, text.splitlines()[0].split(" (")[0]) == (0, "one request is ahead in its queue")
    data = json.loads(run(waiting[0], *ask, "-o", "json")[1])
    assert (data["schema"], data["code"], data["token"]) == (1, "behind", None)
    assert len(json.loads(run(waiting[0], "queue", "-o", "json")[1])["queue"]) == 1


@pytest.mark.parametrize(("asked", "near"), [("TEST-HOST.lan", "test-host"), ("elsewhere", "")])
def test_explain_names_the_unknown_host_and_the_nearest(
    waiting: tuple[CliRunner, str], asked: str, near: str
) -> None:
    """It is said in the shell's words, and in those of JSON."""
    ask = ("explain", "--agent", "me", "--memory", "1MiB", "--host", asked)
    code, text = run(waiting[0], *ask)
    first = text.splitlines()[0]
    assert (code, first.split("; ")[0]) == (0, f"host {asked} has no GPUs in this pool")
    assert (f"--host {near}," in first) == bool(near)
    assert first.endswith("; --host any takes any")
    assert 'host="any"' not in text
    assert "\nno estimate: it does not depend on the end of a lease\n" in text
    data = json.loads(run(waiting[0], *ask, "-o", "json")[1])
    meant = f"; {near} has" if near else ""
    assert data["summary"] == f"host {asked} has no devices in this pool{meant}"
    assert (data["code"], data["host"], data["near_host"]) == ("host_unknown", asked, near)


def test_explain_is_about_this_machine_as_run_is(waiting: tuple[CliRunner, str]) -> None:
    """A GPU of another host is no answer to a request that could not use it."""
    ask = ("explain", "--agent", "me", "--memory", "100MiB")
    for env, host, first in (
        ({}, (), "host laptop has no GPUs in this pool; --host any takes any"),
        ({}, ("--host", "any"), "it fits now: ask"),
        ({"GPU_BROKER_HOSTNAME": "test-host"}, (), "it fits now: ask"),
    ):
        runner = CliRunner(env={**waiting[0].env, "GPU_BROKER_HOSTNAME": "laptop", **env})
        code, text = run(runner, *ask, *host)
        assert (code, text.splitlines()[0]) == (0, first)


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        ((), 2, "name a TOKEN"),
        (("x" * 20, "--agent", "me"), 2, "name a TOKEN"),
        (("x" * 20,), 1, "nothing is known of this token"),
        (("--agent", "me", "--memory", "8 bananas"), 2, "is not a size: 8GiB"),
    ],
)
def test_explain_of_nothing_says_what_to_do(
    waiting: tuple[CliRunner, str], args: tuple[str, ...], code: int, says: str
) -> None:
    """A wrong call ends with a word about the right one."""
    got, text = run(waiting[0], "explain", *args)
    assert got == code
    assert says in text


@pytest.mark.parametrize(
    ("text", "mb"),
    [
        ("8GiB", 8192),
        ("9.5GiB", 9728),
        ("512MiB", 512),
        ("8g", 8192),
        ("100", 100),
        ("1 TiB", 1 << 20),
    ],
)
def test_size_is_mib(text: str, mb: int) -> None:
    """Sizes as people write them."""
    assert Size().convert(text, None, None) == mb


def test_explain_of_a_beginning_that_several_share_asks_for_more(
    waiting: tuple[CliRunner, str],
) -> None:
    """None is picked by chance; a token that is whole is that one, whoever else begins so."""
    runner, _ = waiting
    with LeaseClient.from_url(str(runner.env["REDIS_URL"])) as client:
        for name in ("same-beginning-1", "same-beginning-10"):
            client.acquire("twin", memory_mb=1, host="any", token=name)
        code, text = run(runner, "explain", "same-beg")
        assert (code, "2 tokens begin with same-beg" in text) == (2, True)
        assert run(runner, "explain", "same-beginning-1")[0] == 0
        for name in ("same-beginning-1", "same-beginning-10"):
            client.release(name)
