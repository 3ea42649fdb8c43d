"""GET /policy."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.api.brokers import Answered, Broker
    from tests.api.conftest import Fleet

    Storeless = dict[tuple[str, str], Answered]


def test_policy_of_a_new_pool_has_the_defaults(plain: Broker) -> None:
    """A pool that nobody has set a policy for has the documented one."""
    answer = plain.http.get("/policy")
    assert answer.status_code == 200
    expected = {
        "max_memory_per_agent_mb": 1048576,
        "allow_fractional_shares": True,
        "kill_on_oom": False,
        "safe_mode_read_only": False,
        "default_memory_mb": 2048,
    }
    assert answer.json() | expected == answer.json()


def test_policy_under_safe_mode_is_read_only(fleet: Fleet) -> None:
    """SAFE_MODE shows, whether the environment or the pool's policy has it."""
    assert fleet.safe.http.get("/policy").json()["safe_mode_read_only"] is True
    assert fleet.unset.http.get("/policy").json()["safe_mode_read_only"] is True


def test_policy_without_redis_is_503(storeless: Storeless) -> None:
    """A policy that cannot be read is not made up."""
    answer = storeless["GET", "/policy"].http
    assert answer.status_code == 503
    assert answer.json()["retryable"] is True
    assert int(answer.headers["Retry-After"]) >= 1
