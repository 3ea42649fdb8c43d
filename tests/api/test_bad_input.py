"""Malformed requests: a 4xx with a reason, never a 500, and nothing of it reaches the pool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.api.bodies import BODIES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.api.brokers import Broker
    from tests.pools import Pool

NO_NUMBERS = ("NaN", "Infinity", "-Infinity", '"5"', "true", "[]", "{}", "-1", str(2**63))
NO_INTEGERS = (*NO_NUMBERS, "2.0", "1e3", str(2**53))
NO_SECONDS = (*NO_NUMBERS, "604801", "0.5", "0.0004", "1e-300", "1e400")
NO_NAMES = ("5", "true", "[]", "{}", '""', '"a*"', '"a\\u0000b"', '"a\\n"', '"\\u001b[2J"',
            '"\\ud800"', '"\\u00e9"')  # fmt: skip
NO_TOKENS = (*NO_NAMES, '"short"', '"aaaaaaaaaaaaaaa"', f'"{"a" * 65}"', '"aaaaaaaaaaaaaaaaa:a"',
             '"aaaaaaaa aaaaaaaa"', '"aaaaaaaaaaaaaaaa\\n"', '"aaaaaaaaaaaaaaa\\udfff"',
             '"{aaaaaaaaaaaaaaaa}"', '"../../aaaaaaaaaaaa"')  # fmt: skip

TOKEN = '"00000000-0000-4000-8000-000000000000"'

LEASE: dict[str, tuple[str, ...]] = {
    "agent": (*NO_NAMES, "null", '"a b"', f'"{"a" * 129}"'),
    "min_memory_mb": (*NO_INTEGERS, str(10**13)),
    "memory_mb": NO_INTEGERS,
    "devices": (*NO_INTEGERS, "0", "65", "null"),
    "exclusive": ("0", "1", '"true"', "null", "NaN", "[]"),
    "ttl_s": NO_SECONDS,
    "max_hold_s": NO_NUMBERS,
    "priority": (*NO_INTEGERS, "10", "null"),
    "host": (*NO_NAMES, f'"{"a" * 65}"'),
    "model": (*NO_NAMES, f'"{"a" * 97}"'),
    "placement": ('"best"', "1", "null", "[]", '"\\ud800"'),
    "token": NO_TOKENS,
    "on_unavailable": ('"wait"', "null", "true", '"\\ud800"'),
}
RENEW: dict[str, tuple[str, ...]] = {
    "token": (*NO_TOKENS, "null"),
    "ttl_s": NO_SECONDS,
    "fence": NO_INTEGERS,
}


def field_cases() -> Iterator[Any]:
    """Each bad value of each field of each body, alone in a good body."""
    good_lease = {"agent": '"a"', "min_memory_mb": "1"}
    for path, fields, good in (
        ("/lease", LEASE, good_lease),
        ("/renew", RENEW, {"token": TOKEN}),
        ("/release", {"token": (*NO_TOKENS, "null")}, {}),
    ):
        for field, values in fields.items():
            for value in values:
                rest = {
                    k: v for k, v in good.items() if (k, field) != ("min_memory_mb", "memory_mb")
                }
                pairs = ", ".join(f'"{k}": {v}' for k, v in (rest | {field: value}).items())
                name = value if len(value) < 30 else f"{value[:10]}...{len(value)}"
                yield pytest.param(path, f"{{{pairs}}}".encode(), id=f"{path[1:]}-{field}-{name}")


def body_cases() -> Iterator[Any]:
    """Each body that is none, to each path."""
    for path in ("/lease", "/renew", "/release"):
        for name, body in BODIES.items():
            yield pytest.param(path, body, id=f"{path[1:]}-{name}")


FOLDED = {"ended", "history", "usage", "usage_total", "use"}
"""First parts of the names of keys that a reaper changes some seconds after a lease's end."""


def lasting(pool: Pool) -> dict[str, Any]:
    """The pool's key space without what heartbeats and ticks write."""
    base, found = f"{pool.keys.base}:", {}
    for key, value in pool.state().items():
        name = key.removeprefix(base)
        if name.startswith("host:") or name.partition(":")[0] in FOLDED:
            continue
        if isinstance(value, dict):
            found[name] = {k: v for k, v in value.items() if not passing(name, k)}
        elif name == "deadlines":
            found[name] = [row for row in value if not row[0].startswith("host:")]
        else:
            found[name] = value
    return found


def passing(name: str, field: str) -> bool:
    """Return whether time alone changes a field, or a refusal may count in it."""
    return (
        (name == "pool" and field in {"last_ms", "looked_ms", "next_deadline_ms", "sequence"})
        or (name == "pool" and field.startswith("sweep_"))
        or (name.startswith("device:") and field in {"sampled_ms", "listed_ms"})
        or (name == "stats" and field.startswith("refused_"))
    )


def check_refused(broker: Broker, pool: Pool, method: str, path: str, **request: Any) -> Any:
    """Send it; it must be refused for a reason, and change nothing."""
    before = lasting(pool)
    answer = broker.http.request(method, path, **request)
    assert 400 <= answer.status_code < 500, answer.text
    assert lasting(pool) == before
    return answer


@pytest.mark.parametrize(("path", "body"), [*field_cases(), *body_cases()])
def test_post_of_a_bad_body_is_refused_and_changes_nothing(
    plain: Broker, api_pool: Pool, path: str, body: bytes
) -> None:
    """Every bad value and every body that is none gets a 4xx with a reason, and has no effect."""
    headers = {"Content-Type": "application/json"}
    answer = check_refused(plain, api_pool, "POST", path, content=body, headers=headers)
    detail = answer.json()["detail"]
    assert detail
    if isinstance(detail, list):
        assert {tuple(item) for item in detail} == {("type", "loc", "msg")}


@pytest.mark.parametrize("path", ["/lease", "/renew", "/release", "/health"])
def test_post_of_a_huge_body_is_413(plain: Broker, api_pool: Pool, path: str) -> None:
    """A body that no request needs is refused by its size, announced or not, before it is read."""
    body = b'{"agent": "' + b"a" * 100_000 + b'", "token": "aaaaaaaaaaaaaaaa"}'
    chunks = iter([body[:1000], body[1000:]])
    for content in (body, chunks):
        headers = {"Content-Type": "application/json"}
        if path == "/health":  # it reads no body, so it may as well answer
            assert plain.http.post(path, content=content, headers=headers).status_code in {200, 413}
            continue
        answer = check_refused(plain, api_pool, "POST", path, content=content, headers=headers)
        assert answer.status_code == 413
        assert answer.text


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "\xff"])
def test_post_of_another_content_type_is_refused(plain: Broker, api_pool: Pool, kind: str) -> None:
    """A form that a web page of another origin could send without asking leases nothing."""
    headers = {"Content-Type": kind.encode("latin-1")}
    body = b'{"agent": "a", "min_memory_mb": 1}'
    answer = check_refused(plain, api_pool, "POST", "/lease", content=body, headers=headers)
    assert answer.json()["detail"]


@pytest.mark.parametrize(
    "token",
    ["short", "a" * 65, "a" * 5000, "%00" * 16, "%0a" + "a" * 16, "%ed%a0%80" + "a" * 16,
     "a" * 16 + "%20", "%ff" * 16, "{" + "a" * 16 + "}", "..%2f" + "a" * 16, "*" * 16],
)  # fmt: skip
def test_get_lease_by_what_is_no_token_is_refused(
    plain: Broker, api_pool: Pool, token: str
) -> None:
    """Any bytes that cannot be a token are a 4xx with a reason."""
    answer = check_refused(plain, api_pool, "GET", f"/lease/{token}")
    assert answer.json()["detail"]


def test_lease_under_safe_mode_with_a_bad_body_is_422(fleet: Any) -> None:
    """Validation comes before SAFE_MODE."""
    assert fleet.safe.lease(min_memory_mb=-1).status_code == 422
