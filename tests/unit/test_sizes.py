"""Sizes as people write them, little ones that may be meant otherwise, and what would fit."""

from __future__ import annotations

import json
import logging
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from agent_sdk import AsyncLeaseClient, BadRequest, NeverFits, Store, request
from agent_sdk.protocol.sizes import mebibytes
from tests.api.brokers import PROGRAM, environment
from tests.program import called
from tests.unit.brokers import broker_of_the_file

if TYPE_CHECKING:
    from agent_sdk.testing import TestBroker

pool = broker_of_the_file()
"""Two devices of 24576 MiB on one host."""


def on(pool: TestBroker, *words: str) -> subprocess.CompletedProcess[str]:
    """One call on this pool."""
    env = {"REDIS_URL": pool.url, "GPU_BROKER_HOSTNAME": pool.host}
    if words[0] != "run":
        return called(*words, **env)
    return subprocess.run(
        [PROGRAM, *words], env=environment(**env), capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("text", "mb"),
    [
        ("8GiB", 8192), ("8GB", 8192), ("8g", 8192), ("8 G", 8192), ("9.5gib", 9728),
        ("512MiB", 512), ("512MB", 512), ("512m", 512), ("1TiB", 1 << 20), ("1t", 1 << 20),
        ("8192", 8192), (" 0 ", 0), ("0.0GiB", 0), ("0.4", 1), ("0.0001g", 1),
        ("8 bananas", None), ("GiB", None), ("-8GiB", None), ("", None),
        ("1e3", None), ("\uff19g", None), ("9" * 400, None),
    ],
)  # fmt: skip
def test_size_is_read_as_people_write_it(text: str, mb: int | None) -> None:
    """With or without the i and the B; what is no size is none, and a little is not the default."""
    assert mebibytes(text) == mb


def test_sdk_takes_a_size_as_text(pool: TestBroker) -> None:
    """In place of a number of MiB, never beside it; a number does not say its unit."""
    with pool.client.lease("a", memory="2GiB") as lease:
        assert lease.memory_mb == 2048
    wrong: list[dict[str, Any]] = [
        {"memory": "2 bananas"}, {"memory": 8}, {"memory": "2GiB", "memory_mb": 2048},
    ]  # fmt: skip
    for ask in wrong:
        with pytest.raises(BadRequest, match="memory"):
            pool.client.acquire("a", **ask)


async def test_async_sdk_takes_a_size_as_text(pool: TestBroker) -> None:
    """It reads a size as the blocking client does, and says as much of one that never fits."""
    async with AsyncLeaseClient(Store(pool.url), hostname=pool.host) as client:
        async with client.lease("a", memory="2g") as lease:
            assert lease.memory_mb == 2048
        with pytest.raises(NeverFits, match=f"of host {pool.host} has 24576 MiB"):
            await client.acquire("a", memory="80GiB")


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        ({"memory_mb": -1}, "memory_mb must be 0 to"),
        ({"devices": 0}, "devices must be 1 to 64, not 0"),
        ({"devices": 65}, "devices must be 1 to 64, not 65"),
        ({"priority": 12}, "priority must be 0 to 9, not 12"),
        ({"ttl_s": 0.5}, "ttl_s must be 0 (no expiry) or at least 1 second, not 0.5"),
        ({"ttl_s": 10**6}, "ttl_s must be at most 604800 seconds, not 1000000"),
        ({"wait_s": 10**6}, "wait_s must be at most 604800 seconds"),
    ],
)
def test_sdk_names_its_argument_and_the_range(
    pool: TestBroker, ask: dict[str, Any], says: str
) -> None:
    """The caller's own name, what it may be, and what it was."""
    with pytest.raises(BadRequest) as refused:
        pool.client.acquire("a", **ask)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        ({"memory_mb": 80_000}, ": the largest device has 24576 MiB"),
        ({"memory_mb": 80_000, "host": None}, ": the largest device of host test-host has 24576"),
        ({"memory_mb": 80_000, "model": "MODEL"}, ": the largest device of model MODEL has 24576"),
        ({"devices": 3}, ": 3 of one host and model are asked for, and there are 2, the largest"),
    ],
)
def test_request_that_never_fits_learns_what_would(
    pool: TestBroker, ask: dict[str, Any], says: str
) -> None:
    """The largest device of what was asked for."""
    model = pool.client.devices()[0].name
    if "model" in ask:
        ask = ask | {"model": model}
    with pytest.raises(NeverFits) as refused:
        pool.client.acquire("a", **({"host": "any"} | ask))
    assert says.replace("MODEL", model) in str(refused.value)
    assert refused.value.code == "never_fits"


def test_few_mib_of_the_sdk_are_asked_about_once(
    pool: TestBroker, caplog: pytest.LogCaptureFixture
) -> None:
    """In the log, once in a process for each size; a size as text says its unit."""
    request._say_once.cache_clear()
    with caplog.at_level(logging.WARNING, "agent_sdk.request"):
        for ask in ({"memory_mb": 8}, {"memory_mb": 8}, {"memory": "8MiB"}, {"memory_mb": 64}, {}):
            with pool.client.lease("a", **ask):  # type: ignore[arg-type] # options of both kinds
                pass
    (said,) = [record.getMessage() for record in caplog.records]
    assert said == (
        "memory_mb=8: 8 MiB is very little: if GiB were meant, say memory='8GiB'"
    )  # fmt: skip


def test_few_mib_without_a_unit_are_asked_about_at_the_shell(pool: TestBroker) -> None:
    """The request is taken as it is."""
    asks = "--memory 8: 8 MiB is very little: if GiB were meant, say 8GiB"
    done = on(pool, "run", "--memory", "8", "--", "true")
    assert (done.returncode, asks in done.stderr) == (0, True)
    explained = on(pool, "explain", "--agent", "a", "--memory", "8")
    assert (explained.returncode, asks in explained.stderr) == (0, True)
    for size in ("8MiB", "8m", "64"):
        assert "very little" not in on(pool, "run", "--memory", size, "--", "true").stderr
    events = on(pool, "run", "--memory", "8", "-o", "json", "--", "true").stderr.splitlines()
    assert asks in [event.get("detail") for event in map(json.loads, events)]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--memory", "80GB"), 1, "the largest device of host test-host has 24576 MiB; "),
        (("--memory", "8 bananas"), 2, "is not a size: 8GiB, 512MiB, 8g, or a number of MiB"),
        (("--ttl", "0.5"), 1, "--ttl must be 0 (no expiry) or at least 1 second"),
        (("--ttl", "30d"), 2, "'30d' is too long: at most 7d"),
        (("--wait", "8d"), 2, "'8d' is too long: at most 7d"),
        (("--agent", "a b"), 1, "--agent must match"),
        (("--gpus", "65"), 2, "1<=x<=64"),
    ],
)
def test_shell_names_its_option_and_the_range(
    pool: TestBroker, words: tuple[str, ...], code: int, says: str
) -> None:
    """The option as it was typed, not the argument of the SDK below it."""
    done = on(pool, "run", *words, "--", "true")
    assert (done.returncode, says in done.stderr) == (code, True), done.stderr


@pytest.mark.parametrize("longest", ["36501d", "99999999999h", f"{'9' * 400}h"])
@pytest.mark.parametrize(
    "command",
    ["hold --for", "acquire --for", "adopt --pid 1 --for", "extend 5a37a41f", "run --grace",
     "wait 5a37a41f --timeout"],
)  # fmt: skip
def test_time_that_no_calendar_has_is_refused(command: str, longest: str) -> None:
    """No traceback behind a lease that was taken, and no Infinity in JSON."""
    answer = called(*command.split(), longest, *["true"] * command.startswith("run"))
    assert answer.returncode == 2, answer.stderr
    assert "is too long: at most 36500d" in " ".join(answer.stderr.split())


@pytest.mark.parametrize(
    "command", ["teams -w", "status -w", "top -n", "host --drain-on-stop", "mcp --ttl"]
)
def test_nan_is_no_number(command: str) -> None:
    """It is in no bounds, though it passes each comparison: a picture was drawn once, and never."""
    answer = called(*command.split(), "nan")
    assert (answer.returncode, "is no number" in answer.stderr) == (2, True)
