"""The header of each Lua verb is a promise: here it is read, and held against the body."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

import pytest

from agent_sdk.errors import LeaseError, ProtocolMismatch
from agent_sdk.protocol import lease as protocol
from agent_sdk.protocol import messages
from agent_sdk.protocol.messages import Answer, Call, Pause
from agent_sdk.scripts.source import CORE, KEEPING, REST, VERBS, lua_folder
from tests.unit.calls import REQUEST
from tests.unit.calls import VERBS as CALLS

FOLDER = lua_folder()
LIB = {path.stem: path.read_text() for path in sorted((FOLDER / "lib").glob("*.lua"))}
SHARED = {name: text for name, text in LIB.items() if name not in KEEPING}
"""Files that every verb has; the straight path has arguments of the verbs that it stands for."""


FIELD = re.compile(r"(KEYS|ARGV)\[(\d+)(\+?)\]\s+(\w+)\s+(\S.*)")
BY_POSITION = re.compile(r"\b(?:int|word|choice|token_at)\((\d+)[,)]")
"""A read of an argument through lib/clock.lua, in a body."""

TYPES = {"int", "str"}

SAMPLES = {
    "fence": "7", "expires_at_ms": 5000, "remaining_ms": 4000, "reason": "expired",
    "detail": "", "place": 0, "outcome": "released", "devices": 1, "version": 2, "left": 0,
    "notice": "idle", "rival": "", "contested": "", "until_ms": 5000,
    "hold_until_ms": 5000,
}  # fmt: skip
"""A value for each word that a reply carries."""


CLAIM = messages.RecoveryClaim("1", "agent", "", REQUEST.asked, "client", "1:1")

LONGEST = {
    "acquire": REQUEST._replace(note="why", uses="gpu-a=5").call(),
    "renew": protocol.renew_call(REQUEST.token, 7, 1000, "ann", CLAIM),
}
"""Calls that say more than a verb's first."""


@dataclass(frozen=True)
class Header:
    """The comment at the top of a verb, parsed."""

    name: str
    does: str
    arguments: dict[tuple[str, int], tuple[str, str]] = field(default_factory=dict)
    open_ended: frozenset[int] = frozenset()
    replies: dict[str, tuple[str, ...]] = field(default_factory=dict)
    keeps: str = ""
    cost: str = ""


def split(verb: str) -> tuple[list[str], str]:
    """The lines of the header without their dashes, and the body without its comments."""
    lines = (FOLDER / f"{verb}.lua").read_text().splitlines()
    head = list(takewhile(lambda line: line.startswith("--"), lines))
    body = "\n".join(re.sub(r"(^|\s)--.*", "", line) for line in lines[len(head) :])
    return [line[2:].strip() for line in head], body


def parse(verb: str) -> Header:
    """Read a header; every line of it has to be one of the known ones, in their order."""
    lines, _ = split(verb)
    name, _, does = lines[0].partition(": ")
    assert lines[1] == "", f"{verb}: an empty line follows the first"
    arguments, open_ended, order = {}, set(), []
    rest = {}
    for line in lines[2:]:
        if match := FIELD.fullmatch(line):
            kind, number, more, argument, about = match.groups()
            arguments[kind, int(number)] = (argument, about)
            if more:
                open_ended.add(int(number))
            order.append(kind)
        else:
            word, _, text = line.partition(" ")
            assert word in {"reply", "keeps", "cost"}, f"{verb}: what is {line!r}?"
            rest[word] = text.strip()
            order.append(word)
    assert order == sorted(order, key=["KEYS", "ARGV", "reply", "keeps", "cost"].index), verb
    replies = {}
    for part in rest["reply"].split(" | "):
        tag, *carried = part.split()
        replies[tag] = tuple(carried)
    return Header(
        name, does, arguments, frozenset(open_ended), replies, rest["keeps"], rest["cost"]
    )


HEADERS = {verb: parse(verb) for verb in VERBS}


def test_verbs_are_the_files_of_the_folder() -> None:
    """Each file in lua/ is a verb, and each verb a file; so for the library."""
    assert sorted(VERBS) == sorted(path.stem for path in FOLDER.glob("*.lua"))
    assert sorted(CORE + REST + KEEPING) == sorted(LIB)


@pytest.mark.parametrize("verb", VERBS)
def test_header_opens_with_the_files_own_name_and_what_it_does(verb: str) -> None:
    """`-- <verb>: one sentence.`"""
    header = HEADERS[verb]
    assert header.name == verb
    assert re.fullmatch(r"[a-z].*\.", header.does), header.does


@pytest.mark.parametrize("name", LIB)
def test_library_file_opens_with_its_own_name_and_its_theory(name: str) -> None:
    """`-- <name>: what it is about`, before anything else."""
    assert LIB[name].startswith(f"-- {name}: ")


@pytest.mark.parametrize("verb", VERBS)
def test_header_names_every_key_and_argument_from_one_without_gaps(verb: str) -> None:
    """KEYS[1] is the base, ARGV[1] the protocol; each has a name of its own and a type."""
    arguments = HEADERS[verb].arguments
    keys = sorted(number for kind, number in arguments if kind == "KEYS")
    numbers = sorted(number for kind, number in arguments if kind == "ARGV")
    assert keys == [1]
    assert numbers == list(range(1, len(numbers) + 1))
    assert arguments["KEYS", 1] == ("base", "gpu:{pool}")
    assert arguments["ARGV", 1] == ("protocol", "int")
    names = [name for name, _ in arguments.values()]
    assert len(set(names)) == len(names)
    for (kind, _), (name, about) in arguments.items():
        assert kind == "KEYS" or about.split()[0] in TYPES, f"{name}: {about}"


@pytest.mark.parametrize("verb", VERBS)
def test_header_names_exactly_the_arguments_that_the_body_uses(verb: str) -> None:
    """No argument is named and unused, none is used and unnamed."""
    _, body = split(verb)
    header = HEADERS[verb]
    every = body + "".join(SHARED.values())
    assert "KEYS[1]" in every
    assert not re.search(r"KEYS\[(?!1\])", every), "a pool's keys are spelt from the base"
    named = {number for kind, number in header.arguments if kind == "ARGV"}
    used = {int(n) for n in re.findall(r"ARGV\[(\d+)\]", every)}
    used |= {int(n) for n in BY_POSITION.findall(body)}
    for number in header.open_ended:  # `8+`: the body says where its loop starts
        first = rf"local FIRST, \w+ = {number}, \d+"
        assert re.search(rf"{first}|for \w+ = {number}, #ARGV", body)
        assert re.search(r"while ARGV\[at\]|for \w+ = (?:FIRST|\d+), #ARGV", body)
        used.add(number)
    assert used == named


@pytest.mark.parametrize("verb", VERBS)
def test_header_names_arguments_as_the_body_reports_them(verb: str) -> None:
    """bad_request tells the header's name of the argument, or what the header says of it."""
    _, body = split(verb)
    arguments = HEADERS[verb].arguments
    told = set(re.findall(r"\b(?:int|word|choice)\((\d+), '(\w+)'", body))
    told |= {(number, "token") for number in re.findall(r"\btoken_at\((\d+)\)", body)}
    for number, word in told:
        name, about = arguments["ARGV", int(number)]
        assert word in {name, *re.findall(r"\w+", about)}, f"ARGV[{number}]"


def given_replies(body: str) -> list[tuple[list[str], int]]:
    """Find each reply( of a body: the tags that it may give, and how much it says after them."""
    found = []
    for match in re.finditer(r"\breply\(", body):
        depth, parts = 1, [""]
        for letter in body[match.end() :]:
            depth += (letter in "({") - (letter in ")}")
            if depth == 0:
                break
            if letter == "," and depth == 1:
                parts.append("")
            else:
                parts[-1] += letter
        found.append((re.findall(r"'([A-Z]+)'", parts[0]), len(parts) - 1))
    return found


@pytest.mark.parametrize("verb", VERBS)
def test_header_names_exactly_the_replies_that_the_body_gives(verb: str) -> None:
    """Every tag of the header is given somewhere, and every tag given is in the header."""
    _, body = split(verb)
    given = [tags for tags, _ in given_replies(body)]
    assert all(given), "a tag is always spelt out"
    assert {tag for tags in given for tag in tags} == set(HEADERS[verb].replies)
    assert not any(re.search(r"return reply\(", text) for text in LIB.values()), "verbs reply"


@pytest.mark.parametrize("verb", VERBS)
def test_header_says_how_much_each_reply_carries(verb: str) -> None:
    """A reply has as many parts as the header names; what is in braces may repeat."""
    _, body = split(verb)
    for tags, count in given_replies(body):
        for tag in tags:
            carried = HEADERS[verb].replies[tag]
            if not any(word.startswith("{") for word in carried):
                assert count == len(carried), tag


@pytest.mark.parametrize("verb", VERBS)
def test_header_says_what_the_verb_keeps_and_costs(verb: str) -> None:
    """Invariants by the names of docs/design, and a bound without the pool's size in it."""
    header = HEADERS[verb]
    assert re.match(r"([SL]\d+|SAFE_MODE): \w", header.keeps), header.keeps
    assert re.match(r"O\(.+\)", header.cost), header.cost


@pytest.mark.parametrize(
    ("verb", "tag"), [(verb, tag) for verb in VERBS for tag in HEADERS[verb].replies]
)
def test_reply_of_every_verb_is_understood_by_the_sdk(verb: str, tag: str) -> None:
    """For each reply the SDK has a result or an error of its own; none is a mismatch."""
    words = [w for w in HEADERS[verb].replies[tag] if not re.match(r"[{].*|.*[}]$", w)]
    words = [w for w in words if w in SAMPLES]
    carried = ["no_capacity" if tag == "REFUSED" and w == "reason" else SAMPLES[w] for w in words]
    call = CALLS[verb]()
    assert next(call).verb == verb
    result: object = None
    try:
        result = call.send(Answer([tag, 1000, "", "123", 0, *carried], 0.0))
    except StopIteration as done:
        result = done.value
    except LeaseError as error:
        result = error
    assert result is not None
    assert not isinstance(result, ProtocolMismatch)
    asks_again = isinstance(result, Call) and result.verb == "reap"
    assert asks_again == ((verb, tag) == ("acquire", "AGAIN"))
    assert (tag == "WAITING") == isinstance(result, Pause)


@pytest.mark.parametrize("verb", VERBS)
def test_call_of_every_verb_has_the_arguments_of_its_header(verb: str) -> None:
    """A call has a value for each argument that the header names, in its type."""
    sent = LONGEST[verb] if verb in LONGEST else next(CALLS[verb]())
    header = HEADERS[verb]
    named = sorted(n for kind, n in header.arguments if kind == "ARGV")
    fixed = [n for n in named if n not in header.open_ended]
    assert len(sent.args) >= len(fixed) if header.open_ended else len(sent.args) == len(fixed)
    for number in fixed:
        name, about = header.arguments["ARGV", number]
        value = sent.args[number - 1]
        assert about.startswith("str") or value == "" or int(value) >= 0, name
    assert sent.args[0] == messages.PROTOCOL
    if "token" in {name for name, _ in header.arguments.values()}:
        assert sent.token == sent.args[1]


def test_lua_files_are_named_in_design_words_and_short() -> None:
    """No file of Lua is one that nobody reads to its end."""
    for path in [*FOLDER.glob("*.lua"), *Path(FOLDER, "lib").glob("*.lua")]:
        assert len(path.read_text().splitlines()) <= 260, path.name
