"""Verbs' calls as bytes, checked options that are kept, and what is made when it is looked at."""

from __future__ import annotations

import os
import pickle
from typing import Any

import hiredis
import pytest

from agent_sdk import BadRequest
from agent_sdk.keys import Keys
from agent_sdk.leases.holder import Lease
from agent_sdk.protocol import lease as protocol
from agent_sdk.protocol.messages import Answer, Call, Device, Grant
from agent_sdk.protocol.replies import granted
from agent_sdk.request import MOST_CHECKED, Caller
from agent_sdk.scripts.dispatch import Dispatch
from agent_sdk.scripts.packed import MOST_FRAMES
from tests.unit.calls import FRAME, REQUEST

TOKEN = "t" * 32


def unpacked(data: bytes) -> list[str]:
    """Return the words of a packed command, as a server reads them."""
    reader = hiredis.Reader(encoding="utf-8")
    reader.feed(data)
    words = reader.gets()
    assert not reader.has_data()
    assert isinstance(words, list)
    return words


@pytest.mark.parametrize(
    "call",
    [
        REQUEST.call(),
        REQUEST._replace(host="höst ✓", owner="", wait_ms=12).call(),
        protocol.release_call(TOKEN),
        protocol.release_call("short-token-0123"),
        next(protocol.release(TOKEN, plant=False, owner="who")),
        protocol.renew_call(TOKEN, 2**53 - 1, None),
        protocol.renew_call(TOKEN, None, 1000, "me"),
    ],
)
@pytest.mark.parametrize("functions", [True, False])
def test_packed_call_is_the_command_of_the_same_call(call: Call, functions: bool) -> None:
    """Word by word but for the mark, as a function and as a script, the first time and again."""
    wording = Dispatch(Keys("p").base)
    if not functions:
        wording._none_until = float("inf")
    for _ in range(2):
        data, mark = wording.packed(call)
        expected = [str(word) for word in wording.command(call)]
        words = unpacked(data)
        assert words[4] == f"1 {mark}"
        assert words[:4] + words[5:] == expected[:4] + expected[5:]


def test_calls_that_all_differ_keep_a_bounded_number_of_frames() -> None:
    """Polls of a long wait differ in the rest of its time."""
    wording = Dispatch(Keys("p").base)
    marks = {wording.packed(REQUEST._replace(wait_ms=n).call())[1] for n in range(3 * MOST_FRAMES)}
    assert len(marks) == 3 * MOST_FRAMES
    assert len(wording._frames._known) <= MOST_FRAMES


def test_options_checked_before_do_not_let_equal_wrong_ones_pass() -> None:
    """1 is equal to True and to 1.0, which are no size."""
    caller = Caller("h1", for_others=True)
    for _ in range(2):
        assert caller.request("a", memory_mb=1).memory_mb == 1
    for wrong in (True, 1.0):
        with pytest.raises(BadRequest):
            caller.request("a", memory_mb=wrong)  # type: ignore[arg-type] # that is the point
    with pytest.raises(TypeError, match="unknown options: memory_gb"):
        caller.request("a", memory_gb=1)  # type: ignore[call-arg] # that is the point


def test_option_that_changes_its_value_is_asked_each_time() -> None:
    """An object is not remembered by itself."""

    class Size:
        now = 1

        def __index__(self) -> int:
            return self.now

    caller, size = Caller("h1", for_others=True), Size()
    assert caller.request("a", memory_mb=size).memory_mb == 1  # type: ignore[arg-type] # an index
    size.now = 2
    assert caller.request("a", memory_mb=size).memory_mb == 2  # type: ignore[arg-type] # an index


def test_requests_that_all_differ_are_not_all_kept() -> None:
    """Each has its own token, and its own size."""
    caller = Caller("h1", for_others=True)
    asked = [caller.request("a", memory_mb=n) for n in range(3 * MOST_CHECKED)]
    assert [request.memory_mb for request in asked] == list(range(3 * MOST_CHECKED))
    assert len({request.token for request in asked}) == len(asked)
    assert len(caller._process().checked) <= MOST_CHECKED


def test_request_of_a_forked_child_names_the_child() -> None:
    """Not the client id and the process that its parent had when it checked the same options."""
    caller = Caller("h1")
    mine = caller.request("a", memory_mb=1)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            its = caller.request("a", memory_mb=1)
            os.write(writer, f"{its.client} {its.pid}".encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    client, pid = os.read(reader, 1000).decode().split()
    assert pid.split(":")[0] == str(child)
    assert client != mine.client
    assert caller.request("a", memory_mb=1)[12:14] == mine[12:14]


WORDS = ["GPU-1", "512", 3, "h1", "NVIDIA A100", 81920, "17", "0"]
DEVICE = Device("GPU-1", 3, "h1", "NVIDIA A100", 512, 81920, 17, "0")


def test_devices_and_claim_of_a_grant_are_those_of_the_reply_when_looked_at() -> None:
    """Each is made once, and equal to one that is made at once."""
    raw: list[Any] = ["GRANTED", *FRAME, "7", 31_000, 30_000, "", *WORDS]
    lease = Lease(granted(REQUEST, Answer(raw, 100.0)))
    assert lease.devices == (DEVICE,)
    assert lease.devices is lease.devices
    claim = lease._grant.claim
    assert claim is not None
    assert (claim.devices, claim.request) == ("GPU-1=512", REQUEST.asked)


def test_lease_that_nothing_looked_at_travels_whole() -> None:
    """Its devices are made for the journey."""
    raw: list[Any] = ["GRANTED", *FRAME, "7", 31_000, 30_000, "", *WORDS]
    lease = Lease(granted(REQUEST, Answer(raw, 100.0)))
    seen = pickle.loads(pickle.dumps(lease))
    assert (seen.devices, seen.memory_mb, seen.fence) == ((DEVICE,), 512, 7)
    grant: Grant = pickle.loads(pickle.dumps(lease._grant))
    assert grant.claim == lease._grant.claim
