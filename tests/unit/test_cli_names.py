"""Every name that a command shows is taken by a command, and a misspelled one is answered."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from agent_sdk.testing import running_broker
from tests.api.brokers import PROGRAM, environment
from tests.program import called

if TYPE_CHECKING:
    from collections.abc import Iterator
    from subprocess import CompletedProcess

    from agent_sdk import LeaseClient
    from agent_sdk.testing import TestBroker

AT = "test-host:0"


@pytest.fixture
def pool() -> Iterator[TestBroker]:
    """A pool of two devices on one host."""
    with running_broker() as broker:
        yield broker


def on(pool: TestBroker, *words: str) -> CompletedProcess[str]:
    """One call on this pool."""
    return called(*words, REDIS_URL=pool.url, GPU_BROKER_HOSTNAME=pool.host)


def drained(client: LeaseClient) -> list[str]:
    """Places of the devices that take no leases."""
    return [f"{d.host}:{d.index}" for d in client.devices() if d.drained]


def tokens(pool: TestBroker) -> set[str]:
    """Return the tokens of the leases that live."""
    return {lease.token for lease in pool.client.leases()}


@pytest.mark.parametrize("name", [AT, "SIM-test-host-0", "SIM-test-host-0"[:15]])
def test_device_goes_by_its_place_and_by_its_id(pool: TestBroker, name: str) -> None:
    """drain and undrain take the name that `gpu-broker status` shows."""
    assert "device SIM-test-host-0: 1 device takes no new leases" in on(pool, "drain", name).stdout
    assert drained(pool.client) == [AT]
    assert "1 device takes leases again" in on(pool, "undrain", name).stdout
    assert drained(pool.client) == []
    assert "device SIM-test-host-0: forgotten" in on(pool, "forget", name).stdout
    assert [d.index for d in pool.client.devices()] == [1]


def test_beginning_of_a_device_id_that_several_share_is_refused(pool: TestBroker) -> None:
    """None is drained by chance, and the message lists those that begin so."""
    refused = on(pool, "drain", "SIM-test")
    assert refused.returncode == 2
    assert "2 devices are called SIM-test" in refused.stderr
    assert f"SIM-test-host-0 ({AT})" in refused.stderr
    assert drained(pool.client) == []


def test_revoke_ends_what_is_on_one_gpu(pool: TestBroker) -> None:
    """And nothing on its neighbour."""
    one, other = (pool.client.acquire("a", memory_mb=1, exclusive=True) for _ in range(2))
    on_first = next(x for x in (one, other) if x.devices[0].index == 0)
    done = on(pool, "revoke", "--host", AT, "--reason", "reset", "--force", "-o", "json")
    assert json.loads(done.stdout)["revoked"] == [on_first.token]
    assert tokens(pool) == {one.token, other.token} - {on_first.token}
    refused = on(pool, "revoke", "--host", "test-hots", "--reason", "reset")
    assert refused.returncode == 1
    assert "did you mean test-host" in refused.stderr


def test_events_of_one_gpu(pool: TestBroker) -> None:
    """By the place that the events themselves show."""
    leases = [pool.client.acquire("a", memory_mb=1, exclusive=True) for _ in range(2)]
    at = {lease.devices[0].index: lease.token for lease in leases}
    shown = on(pool, "events", "--type", "granted", "--host", AT, "-o", "json").stdout
    assert [json.loads(line)["token"] for line in shown.splitlines()] == [at[0]]


def test_eight_letters_of_a_token_are_enough_to_revoke(pool: TestBroker) -> None:
    """revoke takes the eight letters that `status` and `events` show."""
    lease = pool.client.acquire("a", memory_mb=1)
    done = on(pool, "revoke", lease.token[:8], "--reason", "done", "--force")
    assert f"{lease.token} ends now" in done.stdout
    assert tokens(pool) == set()


def test_letters_that_several_tokens_share_revoke_none(pool: TestBroker) -> None:
    """The message lists the tokens with their agents."""
    names = ["shared-beginning-1", "shared-beginning-2"]
    for name in names:
        pool.client.acquire(f"of-{name[-1]}", memory_mb=1, token=name)
    refused = on(pool, "revoke", "shared-b", "--reason", "x", "--force")
    assert refused.returncode == 2
    assert "2 tokens begin with shared-b" in refused.stderr
    assert "shared-beginning-1 of of-1" in refused.stderr
    assert tokens(pool) == set(names)


@pytest.mark.parametrize(
    "words",
    [
        ("explain", "{}"),
        ("wait", "{}"),
        ("extend", "{}", "1h"),
        ("release", "{}"),
        ("ask", "{}"),
        ("revoke", "{}", "--reason", "x"),
    ],
)
def test_letters_with_which_no_token_begins_say_where_tokens_are(
    pool: TestBroker, words: tuple[str, ...]
) -> None:
    """The lease may have ended; fewer letters than eight are no beginning."""
    unknown = on(pool, *(word.format("5a37a41f") for word in words))
    assert (unknown.returncode, "5a37a41f" in unknown.stderr) == (1, True)
    assert "gpu-broker leases" in unknown.stderr
    short = on(pool, *(word.format("5a37") for word in words))
    assert (short.returncode, "write 8 letters" in short.stderr) == (1, True)


@pytest.mark.parametrize(
    "words",
    [
        ("explain", "{}"),
        ("wait", "{}"),
        ("extend", "{}", "1h"),
        ("release", "{}"),
        ("revoke", "{}", "--reason", "x"),
    ],
)
def test_whole_token_that_is_unknown_says_where_tokens_are(
    pool: TestBroker, words: tuple[str, ...]
) -> None:
    """It may have been mistyped, or have ended long ago."""
    unknown = on(pool, *(word.format("5a37a41f" * 4) for word in words))
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "nothing is known of" in unknown.stderr
    assert unknown.stderr.count("gpu-broker leases") == 1


def test_release_looks_at_every_token_before_it_gives_one_back(pool: TestBroker) -> None:
    """It tells what it has given back, also beside letters with which none begins."""
    names = ["shared-beginning-1", "shared-beginning-2", "one-of-its-own-kind"]
    for name in names:
        pool.client.acquire("a", memory_mb=1, token=name)
    assert on(pool, "release", "one-of-i", "shared-b").returncode == 2
    assert tokens(pool) == {*names}
    done = on(pool, "release", "one-of-i", "5a37a41f", "-o", "json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["released"], told["unknown"]) == (1, names[2:], ["5a37a41f"])
    assert tokens(pool) == {*names[:2]}


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("stauts",), "did you mean status?"),
        (("polciy", "get"), "did you mean policy?"),
        (("status", "--wathc"), "Did you mean '--watch'?"),
        (("policy", "set", "idle_afer_s=60"), "did you mean idle_after_s"),
        (("policy", "set", "Kill_On_OOM=true"), "did you mean kill_on_oom?"),
        (("drain", "tset-host"), "did you mean test-host"),
        (("drain", "test-host:00"), "did you mean test-host:0"),
        (("undrain", "test-host:00"), "did you mean test-host:0"),
        (("forget", "test-host:00"), "did you mean test-host:0"),
        (("forget", "tset host"), "did you mean test-host"),
        (("release-driver", "tset-host"), "did you mean test-host"),
        (("release-driver", "test-host:0"), "name the host"),
        (("explain", "--agent", "a", "--host", "tesst-host"), "did you mean test-host?"),
        (("revoke", "--agent", "anlyst", "--reason", "x"), "did you mean analyst?"),
        (("leases", "--agent", "anlyst"), "did you mean analyst?"),
        (("queue", "--agent", "anlyst"), "did you mean analyst?"),
    ],
)
def test_misspelled_name_is_answered_with_the_right_one(
    pool: TestBroker, words: tuple[str, ...], meant: str
) -> None:
    """Commands, options, fields of the policy, hosts, devices, agents."""
    pool.client.acquire("analyst", memory_mb=1)
    done = on(pool, *words)
    assert meant in done.stdout + done.stderr


def test_run_on_a_misspelled_host_names_the_right_one(pool: TestBroker) -> None:
    """The command does not run, and it is said why."""
    words = ("run", "--host", "tesst-host", "--wait", "0", "--", "true")
    env = environment(REDIS_URL=pool.url)
    done = subprocess.run([PROGRAM, *words], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "host tesst-host has no GPUs in this pool; did you mean test-host?" in done.stderr


def test_names_of_nothing_have_no_nearest(pool: TestBroker) -> None:
    """It is said what there is."""
    assert "gpu-broker --help" in on(pool, "xyzzy").stderr
    assert "hosts: test-host" in on(pool, "drain", "xyzzy").stderr
    assert "the fields are safe_mode," in on(pool, "policy", "set", "xyzzy=1").stderr


def test_misspelled_key_names_the_nearest(tmp_path: Any) -> None:
    """`keys revoke` ends no key by chance."""
    keys = {"GPU_BROKER_KEYS_FILE": str(tmp_path / "keys"), "HOME": os.fspath(tmp_path)}
    assert called("keys", "new", "grafana", "--role", "viewer", **keys).returncode == 0
    refused = called("keys", "revoke", "grafanna", **keys)
    assert refused.returncode == 1
    assert "did you mean grafana?" in refused.stderr
