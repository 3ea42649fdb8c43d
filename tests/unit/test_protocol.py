"""The protocol without the waiting: what is sent, what each answer means, and one closed table."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest

import agent_sdk
from agent_sdk import errors
from agent_sdk.clock import local_now
from agent_sdk.errors import (
    CODES,
    BrokerUnavailable,
    LeaseError,
    LeaseLost,
    NoCapacity,
    ProtocolMismatch,
    error_for,
)
from agent_sdk.protocol import lease as protocol
from agent_sdk.protocol import messages, report, validation
from agent_sdk.protocol.messages import Answer, Call, Pause
from agent_sdk.scripts.source import lua_folder
from tests.unit.calls import FRAME, REPORT, REQUEST, VERBS

BY_THE_CLIENT = {
    "denied", "store_unavailable", "outcome_unknown", "unreachable", "unknown_token",
}  # fmt: skip
"""Codes that no script says: the SDK makes them of tags, or of what went wrong on the way."""

AT_THE_DOOR = {"unauthorized", "forbidden", "busy", "hook_unknown"}
"""Codes that only the broker says."""

BY_THE_QUEUE = {"cancelled", "timed_out", "waiting"}
"""Codes of how a wait stands and ends."""

LUA = {path.name: path.read_text() for path in lua_folder().rglob("*.lua")}

SAYS_A_REASON = (
    r"\breply\('(?:REFUSED|LOST|ALREADY)', '(\w+)'",
    r"\bwhy = (?!word)[^\n]*?'(\w+)'",
    r"\bor '(\w+)'\)? then return",
    r"return nil, '(\w+)'",
    r"then return '([a-z_]+)'(?!, x\.)",
    r"\breturn \{ '(\w+)'",
    r"^\s*return '([a-z_]+)'",
    r"broker\.leave_outcome\(token, '(\w+)'\)",
)
"""Spellings in Lua of a reason or an outcome; the tag of a reply is none."""


def answered(verb: str, raw: Any) -> Any:
    """Return a verb's result from one answer that came to a call sent at 100 s."""
    steps = VERBS[verb]()
    next(steps)
    try:
        return steps.send(Answer(raw, 100.0))
    except StopIteration as done:
        return done.value


def reasons() -> set[str]:
    """Every reason that a script can say."""
    found = set()
    for text in LUA.values():
        for pattern in SAYS_A_REASON:
            found |= set(re.findall(pattern, text, re.MULTILINE))
        for call in re.findall(
            r"broker\.(?:bury|end_lease|close_lease)\((?:[^()]|\([^()]*\))*\)", text
        ):
            found |= set(re.findall(r"'(\w+)'", call))
        for ending in re.findall(r"\bwhat \.\. '(_\w+)'", text):  # of a device or of a host
            found |= {f"device{ending}", f"host{ending}"}
    return found


def test_codes_hold_every_reason_that_the_scripts_say() -> None:
    """No script says a word that the table lacks."""
    assert reasons() >= {"safe_mode", "closed", "limit", "no_capacity", "agent_cap", "not_ready"}
    assert reasons() >= {"never_fits", "host_unknown", "model_unknown", "protocol_mismatch"}
    assert reasons() >= {"expired", "released", "superseded", "bad_request"}
    assert reasons() <= CODES.keys(), reasons() - CODES.keys()


def test_codes_are_all_said_by_a_script_or_made_by_the_client() -> None:
    """No code stands in the table that nobody says."""
    assert CODES.keys() - reasons() <= BY_THE_CLIENT | BY_THE_QUEUE | AT_THE_DOOR
    assert not reasons() & BY_THE_CLIENT
    files = Path(agent_sdk.__file__).parent.rglob("*.py")
    texts = [path.read_text() for path in files if path.name != "errors.py"]
    for code in BY_THE_CLIENT:
        assert any(f'"{code}"' in text for text in texts), f"who says {code}?"


def test_codes_reach_every_error_class() -> None:
    """The table is total the other way too: each class is the meaning of some code."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    classes = {kind for kind in kinds if issubclass(kind, LeaseError)}
    abstract = {errors.LeaseError, errors.Refused}
    in_time = {kind for kind in classes if issubclass(kind, errors.NotGrantedInTime)}
    assert {code.error for code in CODES.values()} == classes - abstract - in_time
    for kind in classes:
        assert kind.__name__ in agent_sdk.__all__


@pytest.mark.parametrize("code", CODES)
def test_code_makes_its_error(code: str) -> None:
    """A code is an error of its class that says what is true, in one plain line."""
    error = error_for(code, token="t")
    row = CODES[code]
    assert type(error) is row.error
    assert (error.code, error.token, error.retryable) == (code, "t", row.retryable)
    assert str(error) == row.says
    assert re.fullmatch(r"[^\n]{10,120}", row.says)
    assert str(error_for(code, "other words")) == "other words"
    assert row.status in {202, 401, 403, 404, 409, 422, 503}
    assert (row.status == 503) == issubclass(
        row.error, (errors.BrokerUnavailable, errors.OutcomeUnknown, ProtocolMismatch)
    )
    assert not (row.retryable and issubclass(row.error, LeaseLost)), "nothing resurrects"


def test_code_that_is_not_in_the_table_is_a_mismatch() -> None:
    """A word from a newer script is a mismatch of versions, not a KeyError."""
    assert type(error := error_for("word_from_the_future")) is ProtocolMismatch
    assert "word_from_the_future" in str(error)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("code", sorted(reasons() - {"bad_request"}))
def test_refusal_by_any_verb_raises_the_error_of_its_code(verb: str, code: str) -> None:
    """REFUSED and its reason become the error with that code, whatever was called."""
    with pytest.raises(LeaseError) as caught:
        answered(verb, ["REFUSED", *FRAME, code, ""])
    assert type(caught.value) is CODES[code].error
    assert caught.value.code == code


@pytest.mark.parametrize("verb", VERBS)
def test_bad_request_names_what_is_not_well_formed(verb: str) -> None:
    """The caller learns which argument it was."""
    with pytest.raises(errors.BadRequest, match="ttl_ms"):
        answered(verb, ["REFUSED", *FRAME, "bad_request", "ttl_ms"])


DETAILS = {
    ("limit", ""): "the agent has too many leases or waiters already",
    ("limit", "key bot"): "API key bot has too many leases",
    (
        "limit",
        "team lab",
    ): r"team lab has too many .*max_leases, max_waiters.*gpu-broker policy apply",
    ("agent_cap", "key bot"): r"API key bot is at its cap, .*max_memory_per_agent_mb",
    ("agent_cap", "team lab"): r"team lab may hold no more now: .*borrow.*gpu-broker policy apply",
    ("team_unknown", "typo"): r"team typo is not in .*gpu-broker policy apply",
    (
        "team_limit",
        "max_priority=3",
    ): r"team lab may ask for a priority of at most 3 .*max_priority",
    ("team_limit", "max_ttl_s=20"): r"team lab may ask for a ttl_s of 1 to 20 s .*max_ttl_s",
    ("team_limit", "max_hold_s=60"): r"team lab may hold a lease for at most 60 s .*max_hold_s",
    ("team_limit", "most_mb=800"): r"team lab may never hold more than 800 MiB .*nominal_mb",
    (
        "team_limit",
        "max_new=7",
    ): r"team lab is limited by its max_new of 7 .*gpu-broker policy apply",
}


@pytest.mark.parametrize(("code", "detail"), DETAILS)
def test_refusal_says_which_limit_and_the_way_out(code: str, detail: str) -> None:
    """The party at its cap, the number, and the command of an operator that changes it."""
    request = REQUEST._replace(team="lab")
    steps = protocol.acquire(request)
    next(steps)
    with pytest.raises(LeaseError, match=DETAILS[code, detail]) as caught:
        steps.send(Answer(["REFUSED", *FRAME, code, detail], 100.0))
    assert caught.value.code == code
    if isinstance(caught.value, errors.AgentCapExceeded):
        assert caught.value.party == (detail or "agent")
        assert errors.in_time(caught.value).party == caught.value.party  # type: ignore[attr-defined] # errors of this kind have it
    else:
        assert isinstance(caught.value, errors.TeamLimit)
        assert caught.value.limit == (detail if code == "team_limit" else "")


@pytest.mark.parametrize(("next_deadline_ms", "expected"), [(1500, 0.5), (900, 0.0), ("", None)])
def test_no_capacity_tells_when_to_ask_again(next_deadline_ms: Any, expected: float | None) -> None:
    """Not before something ends: next_deadline_ms from now, in seconds; None when nothing will."""
    with pytest.raises(NoCapacity) as caught:
        answered("acquire", ["REFUSED", 1000, next_deadline_ms, "123", 0, "no_capacity", ""])
    assert caught.value.retry_after_s == expected


@pytest.mark.parametrize("code", [c for c in CODES if CODES[c].error is LeaseLost])
@pytest.mark.parametrize("verb", ["acquire", "renew", "revoke"])
def test_lost_raises_with_the_reason(verb: str, code: str) -> None:
    """LOST, to an operator ALREADY, says why; the error names the token."""
    with pytest.raises(LeaseLost) as caught:
        answered(verb, ["ALREADY" if verb == "revoke" else "LOST", *FRAME, code])
    assert (caught.value.code, caught.value.token) == (code, REQUEST.token)


def test_conflict_and_unknown_raise_errors_of_their_own() -> None:
    """Tags that need no reason."""
    with pytest.raises(errors.Conflict):
        answered("acquire", ["CONFLICT", *FRAME])
    with pytest.raises(errors.UnknownToken):
        answered("renew", ["UNKNOWN", *FRAME])


GARBAGE: tuple[Any, ...] = (
    None, "", "OK", b"GRANTED", 0, 1.5, {}, [], [""], [None], [[]], ["WHAT"], ["granted", *FRAME],
    ["GRANTED"], ["RENEWED"], ["RELEASE"], ["ALREADY"], ["LOST"], ["REFUSED"], ["REAPED"],
    ["REPORTED"], ["REVOKED"], ["DRAINED"], ["POLICY"],
    ["REFUSED", *FRAME], ["LOST", *FRAME], ["ALREADY", *FRAME], ["RENEWED", *FRAME],
    ["GRANTED", *FRAME], ["GRANTED", *FRAME, "7"], ["GRANTED", *FRAME, "7", 5000, 4000],
    ["GRANTED", *FRAME, "seven", 5000, 4000, ""], ["GRANTED", *FRAME, None, 5000, 4000, ""],
    ["GRANTED", *FRAME, "7", 5000, 4000, "", "gpu-a"],
    ["GRANTED", *FRAME, "7", 5000, 4000, "", "gpu-a", "900", "0", "h1"],
    ["GRANTED", *FRAME, "7", 5000, 4000, "", "gpu-a", "lots", "0", "h1", "name"],
    ["GRANTED", *FRAME, "7", 5000, "soon", ""], ["RENEWED", *FRAME, 5000],
    ["RENEWED", *FRAME, 5000, "soon", ""], ["RENEWED", *FRAME, 5000, None, ""],
    ["RENEWED", *FRAME, 5000, 4000], ["ALREADY", *FRAME, 7],
    ["LOST", *FRAME, 7], ["LOST", *FRAME, None], ["LOST", *FRAME, "word_from_the_future"],
    ["REFUSED", *FRAME, 7, ""], ["REFUSED", *FRAME, "word_from_the_future", ""],
    ["REFUSED", None, None, None, None, "no_capacity"],
    ["REFUSED", 1000, "soon", "123", 0, "no_capacity", ""],
)  # fmt: skip
"""Answers that no verb gives."""


@pytest.mark.parametrize("verb", VERBS)
def test_answer_that_is_garbage_is_a_mismatch(verb: str) -> None:
    """Any other answer is ProtocolMismatch, never a TypeError or ValueError."""
    wrong = {}
    for raw in GARBAGE:
        try:
            wrong[repr(raw)] = repr(answered(verb, raw))
        except ProtocolMismatch:
            pass
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the wrong one
            wrong[repr(raw)] = repr(error)
    assert not wrong, "\n".join(f"{raw}: {became}" for raw, became in wrong.items())


@pytest.mark.parametrize("verb", VERBS)
def test_answer_to_another_verb_is_a_mismatch(verb: str) -> None:
    """A tag that this verb never gives means nothing to it."""
    tags = {
        "acquire": ["GRANTED", *FRAME, "7", 5000, 4000, ""], "reap": ["REAPED", *FRAME],
        "renew": ["RENEWED", *FRAME, 5000, 4000, ""], "release": ["RELEASED", *FRAME],
        "report": ["REPORTED", *FRAME], "revoke": ["REVOKED", *FRAME, 5000],
        "drain": ["DRAINED", *FRAME, 1], "set_policy": ["POLICY", *FRAME, 2],
        "forget": ["FORGOTTEN", *FRAME, 1, 0], "release_driver": ["DRIVER", *FRAME, 5000],
        "set_teams": ["POLICY", *FRAME, 2], "ask": ["ASKED", *FRAME],
        "extend": ["EXTENDED", *FRAME, 5000],
    }  # fmt: skip
    for raw in tags.values():
        if raw[0] != tags.get(verb, [""])[0]:
            with pytest.raises(ProtocolMismatch):
                answered(verb, raw)


def test_acquire_sends_the_request_in_order() -> None:
    """Seventeen arguments, as lua/acquire.lua names them."""
    call = next(protocol.acquire(REQUEST))
    assert call == Call(
        "acquire",
        (
            1, "t" * 16, "analyst", 900, 2, 1, 30000, 5, 7, "h1", "m1", "pack", "cpu", "c", "1:2",
            "o", 0,
        ),
        "t" * 16,
    )  # fmt: skip


def test_acquire_reads_a_grant() -> None:
    """Fence and MiB as integers, devices in order, trust counted from when the call was sent."""
    flat = ["gpu-a", "900", "3", "h1", "A100", 81920, "512", "3"]
    flat += ["gpu-b", "800", "4", "h1", "A100", 81920, "", ""]
    grant = answered("acquire", ["GRANTED", *FRAME, "9007199254740991", 31000, 30000, "", *flat])
    assert (grant.token, grant.agent, grant.ttl_ms) == (REQUEST.token, "analyst", 30000)
    assert (grant.fence, grant.expires_at_ms, grant.remaining_ms) == (2**53 - 1, 31000, 30000)
    assert grant.reason is None
    assert [(d.uuid, d.index, d.host, d.name, d.memory_mb) for d in grant.devices] == [
        ("gpu-a", 3, "h1", "A100", 900), ("gpu-b", 4, "h1", "A100", 800),
    ]  # fmt: skip
    assert [(d.total_mb, d.used_mb, d.runtime_id) for d in grant.devices] == [
        (81920, 512, "3"), (81920, None, ""),
    ]  # fmt: skip
    assert grant.trusted_until == pytest.approx(100.0 + 30 * 0.99 - 0.05)


def test_acquire_reads_a_cpu_lease() -> None:
    """No devices, and why."""
    grant = answered("acquire", ["GRANTED", *FRAME, "7", 5000, 4000, "agent_cap"])
    assert (grant.devices, grant.reason) == ((), "agent_cap")


def test_acquire_told_to_ask_again_reaps_all_and_asks_the_same() -> None:
    """AGAIN: reap until nothing is left, then the very same call."""
    steps = protocol.acquire(REQUEST)
    first = next(steps)
    assert steps.send(Answer(["AGAIN", 1000, "", "123", 1], 0.0)) == Call("reap", (1, 0))
    assert steps.send(Answer(["REAPED", 1000, "", "123", 1], 0.0)) == Call("reap", (1, 0))
    assert steps.send(Answer(["REAPED", 1000, "", "123", 0], 0.0)) == first
    with pytest.raises(StopIteration) as done:
        steps.send(Answer(["GRANTED", *FRAME, "7", 5000, 4000, ""], 50.0))
    assert done.value.value.trusted_until == pytest.approx(50.0 + 4 * 0.99 - 0.05)


def test_acquire_in_a_queue_outlasts_the_loss_of_its_pool() -> None:
    """Its wait has an end; a request to a pool that never was there is refused at once."""
    no_pool = Answer(["REFUSED", *FRAME, "not_ready", ""], 0.0)
    steps = protocol.acquire(REQUEST, until=local_now() + 0.5)
    next(steps)
    assert isinstance(steps.send(Answer(["WAITING", *FRAME, 0], 0.0)), Pause)
    assert isinstance(next(steps), Call)
    assert isinstance(steps.send(no_pool), Pause)
    assert isinstance(next(steps), Call)
    time.sleep(0.5)
    with pytest.raises(BrokerUnavailable):
        steps.send(no_pool)
    steps = protocol.acquire(REQUEST, until=local_now() + 60)
    next(steps)
    with pytest.raises(BrokerUnavailable):
        steps.send(no_pool)


def test_renew_sends_what_is_known_and_empty_what_is_not() -> None:
    """Fence and ttl may be left out: not compared, and as at the grant."""
    assert protocol.renew_call("t", 7, 1000) == Call("renew", (1, "t", 7, 1000), "t")
    assert protocol.renew_call("t", None, None) == Call("renew", (1, "t", "", ""), "t")
    assert protocol.renew_call("t", 0, 0).args == (1, "t", 0, 0)
    renewal = answered("renew", ["RENEWED", *FRAME, 31000, 30000, ""])
    assert (renewal.expires_at_ms, renewal.remaining_ms) == (31000, 30000)
    assert renewal.trusted_until == pytest.approx(100.0 + 30 * 0.99 - 0.05)


@pytest.mark.parametrize(
    ("raw", "by_this_call", "outcome"),
    [
        (["RELEASED", *FRAME], True, "released"),
        (["ALREADY", *FRAME, "expired"], False, "expired"),
        (["UNKNOWN", *FRAME], False, "unknown_token"),
    ],
)
def test_release_tells_how_it_went(raw: list[Any], by_this_call: bool, outcome: str) -> None:
    """The result says whether this call ended the lease, and the end in a word of the table."""
    ending = answered("release", raw)
    assert (ending.by_this_call, ending.outcome) == (by_this_call, outcome)
    assert outcome in CODES


def test_release_plants_unless_told_otherwise() -> None:
    """plant travels as 1 or 0."""
    assert next(protocol.release("t")).args == (1, "t", 1)
    assert next(protocol.release("t", plant=False)).args == (1, "t", 0)


def test_report_sends_devices_flat_with_their_number_of_pairs() -> None:
    """id, number of pairs, then field and value of each."""
    devices = (("gpu-a", (("index", "0"), ("state", "ok"))), ("gpu-b", ()))
    call = next(report.report("h1", devices, **REPORT))
    head = (1, "h1", 15000, 5, "123", 1, "1")
    assert call.args == (*head, "gpu-a", 2, "index", "0", "state", "ok", "gpu-b", 0)


@pytest.mark.parametrize("verb", ["reap", "report"])
def test_moment_is_what_every_reply_begins_with(verb: str) -> None:
    """The pool's time, what is due next or None, the epoch, and whether more is over."""
    tag = {"reap": "REAPED", "report": "REPORTED"}[verb]
    seen = answered(verb, [tag, 1000, 1500, "123", 1])
    assert (seen.now_ms, seen.next_deadline_ms, seen.epoch, seen.more) == (1000, 1500, "123", True)
    seen = answered(verb, [tag, 1000, "", "123", 0])
    assert (seen.next_deadline_ms, seen.more) == (None, False)


def test_tokens_are_new_each_time_and_well_formed() -> None:
    """A token nobody had before, in the form that the scripts take."""
    assert len(tokens := {messages.new_token() for _ in range(1000)}) == 1000
    assert all(validation.check_name(token, "token") == token for token in tokens)


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1, -0.001, "1", None, [], 1j])
def test_milliseconds_of_what_is_no_time_is_a_bad_request(seconds: Any) -> None:
    """Only a finite number of seconds from 0 up is a time."""
    with pytest.raises(errors.BadRequest, match="ttl_s"):
        validation.milliseconds(seconds, "ttl_s")


def test_milliseconds_rounds_to_whole_ones() -> None:
    """A time is as exact as the wire."""
    assert [validation.milliseconds(s, "x") for s in (30, 1.2345678, 0)] == [30000, 1235, 0]


@pytest.mark.parametrize("name", ["agent", "host", "model", "token"])
@pytest.mark.parametrize(
    "bad", ["", "a" * 129, "a|b", "a{b", "\u00e9" * 16, "a" * 16 + "\n", None, 7]
)
def test_name_of_another_form_is_a_bad_request(name: str, bad: Any) -> None:
    """A name that may not go into keys, logs and pages is refused before it is sent."""
    with pytest.raises(errors.BadRequest, match=name):
        validation.check_name(bad, name)
