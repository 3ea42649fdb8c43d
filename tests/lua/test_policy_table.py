"""The policy's fields: Lua's literal table says what `agent_sdk.policy` declares."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import get_type_hints

import pytest

from agent_sdk.errors import BadRequest
from agent_sdk.policy import FIELDS, WORDS, Policy, PolicyField, PolicyValues, from_store
from agent_sdk.scripts.source import lua_folder
from tests.pools import Pool, said

REFUSED = ["REFUSED", "bad_request"]

NUMBERS = [field for field in FIELDS.values() if field.kind == "number"]

OTHERS = {
    "flag": (("0", "1"), ("2", "-1", "true", "")),
    "action": (tuple(WORDS["action"]), ("", "kill", "Observe")),
    "memory_limit": (tuple(WORDS["memory_limit"]), ("", "on", "Required")),
    "xid_actions": (
        ("", "31=suspect", "31=ignore,79=hold,48=probe"),
        ("79", "79=hold,", "79=reset", "12345=hold", ",".join(["79=hold"] * 33)),
    ),
    "prices": (
        ("", "*=1", "NVIDIA H200=3.2,*=1", "m1=0.0001"),
        ("3", "=3", "*=", "*=1.", "*=1.00001", "*=-1", "a=1,", "a/b=1", ",".join(["a=1"] * 200)),
    ),
}
"""Words that a field of each kind takes and words that it refuses."""


def test_new_pool_has_the_declared_defaults(gpu: Pool) -> None:
    """The first report writes the values that readers take for a field that is not there."""
    row = gpu.hash("pool")
    assert FIELDS.keys() <= row.keys()
    assert from_store(row) == from_store({})


@pytest.mark.parametrize("field", NUMBERS, ids=lambda field: field.name)
def test_number_is_taken_within_its_bounds_alone(gpu: Pool, field: PolicyField) -> None:
    """The least and the most are taken, and nothing beyond them, by Lua and by the client."""
    for value in (field.least, field.most):
        assert said(gpu.set_policy(**{field.name: value}))[0] == "POLICY"
        assert field.to_store(value) == value
    for value in (field.least - 1, field.most + 1):
        assert said(gpu.set_policy(**{field.name: value}))[:2] == REFUSED
        with pytest.raises(BadRequest, match=f"{field.name} must be {field.least} to {field.most}"):
            field.to_store(value)


@pytest.mark.parametrize(
    "field", [x for x in FIELDS.values() if x.kind != "number"], ids=lambda field: field.name
)
def test_word_is_taken_if_it_is_of_the_kind(gpu: Pool, field: PolicyField) -> None:
    """The same for flags, actions and the meanings of error codes."""
    taken, refused = OTHERS[field.kind]
    for word in taken:
        gpu.set_policy(safe_mode=0)
        assert said(gpu.set_policy(**{field.name: word}))[0] == "POLICY", word
        value = word == "1" if field.kind == "flag" else word
        assert str(field.to_store(value)) == word
        assert field.from_store(word) == value
    gpu.set_policy(safe_mode=0)
    for word in refused:
        assert said(gpu.set_policy(**{field.name: word}))[:2] == REFUSED, word
        with pytest.raises(BadRequest):
            field.to_store(word)


def test_lua_takes_no_field_that_is_not_declared() -> None:
    """The names in the two tables of set_policy.lua are those that are declared."""
    text = (lua_folder() / "set_policy.lua").read_text()
    tables = text[text.index("local FIELDS") : text.index("local unready")]
    names = re.findall(
        r"\b(\w+) = (?:{ -?\d|action\b|memory_limit\b|xid_actions\b|prices\b)", tables
    )
    assert sorted(names) == sorted(FIELDS)


def test_type_checkers_see_the_declared_fields() -> None:
    """`Policy`, by which calls are checked, has the names and the types of the declaration."""
    declared = get_type_hints(PolicyValues)
    assert list(get_type_hints(Policy)) == [field.name for field in fields(PolicyValues)]
    assert get_type_hints(Policy) == declared
