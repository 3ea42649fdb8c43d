"""Whatever a server answers, a verb returns a result or raises a LeaseError, and nothing else."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent_sdk.errors import LeaseError
from agent_sdk.protocol.messages import Answer, Pause
from agent_sdk.protocol.replies import moment, renewed
from tests.unit.calls import FRAME, VERBS
from tests.unit.replies import NESTED, QUIET

TAGS = (
    "GRANTED", "WAITING", "AGAIN", "REFUSED", "CONFLICT", "LOST", "RENEWED", "UNKNOWN", "RELEASED",
    "ALREADY", "REAPED", "REPORTED", "REVOKED", "DRAINED", "UNDRAINED", "POLICY",
)  # fmt: skip


FRAMES = st.tuples(NESTED, NESTED, NESTED, NESTED) | st.just(FRAME)

REPLIES = NESTED | st.builds(
    lambda tag, frame, rest: [tag, *frame, *rest],
    st.sampled_from(TAGS),
    FRAMES,
    st.lists(NESTED, max_size=12),
)
"""Half of them with a tag and, now and then, a frame of this protocol."""

LONGEST = 5
"""Answers that one call is given: what asks on for ever is stopped there."""


def drive(verb: str, replies: list[Any]) -> None:
    """Give a verb these answers, one after the other; a LeaseError ends it as a result does."""
    steps = VERBS[verb]()
    with suppress(StopIteration, LeaseError):
        asked = next(steps)
        for raw in replies:
            while isinstance(asked, Pause):
                assert asked.seconds >= 0
                asked = steps.send(Answer([], 100.0))
            asked = steps.send(Answer(raw, 100.0))


@pytest.mark.parametrize("verb", VERBS)
@QUIET
@given(replies=st.lists(REPLIES, min_size=1, max_size=LONGEST))
@example(replies=[["WAITING", "soon", 5, "1", 0, 0]])
@example(replies=[["WAITING", 1000, float("inf"), "1", 0, 0]])
@example(replies=[["WAITING", 1000, 10**400, "1", 0, 0]])
@example(replies=[["GRANTED", *FRAME, float("inf"), 5000, 4000, ""]])
@example(replies=[["GRANTED", *FRAME, "7", 5000, 10**400, ""]])
@example(replies=[["RENEWED", *FRAME, 5000, 10**400, ""]])
@example(replies=[["REFUSED", 1000, 10**400, "1", 0, "no_capacity", ""]])
@example(replies=[["REFUSED", 1000, float("nan"), "1", 0, "no_capacity", ""]])
def test_any_reply_is_a_result_or_a_lease_error(verb: str, replies: list[Any]) -> None:
    """Nested as deep as it likes, with numbers as large: no TypeError, no OverflowError."""
    drive(verb, replies)


@QUIET
@given(raw=REPLIES)
def test_any_reply_to_a_renewal_in_a_pipeline_is_a_result_or_a_lease_error(raw: Any) -> None:
    """The keeper reads answers without a generator, and must outlive each of them."""
    for read in (moment, lambda answer: renewed(answer, "t" * 16)):
        with suppress(LeaseError):
            read(Answer(raw, 100.0))


def test_reply_that_is_nested_without_end_is_a_lease_error() -> None:
    """Deeper than this interpreter recurses."""
    deep: list[Any] = []
    for _ in range(200_000):
        deep = [deep]
    for verb in VERBS:
        drive(verb, [deep])
    while deep:
        deep = deep[0]
