"""What each form of a store's URL means, and what is said of one that is none."""

from __future__ import annotations

from typing import Any

import pytest

from agent_sdk import Store
from agent_sdk.store_url import NO_DATABASES, NO_SERVICE, NO_URL, parse

RIGHT: list[tuple[str, dict[str, Any]]] = [
    ("redis://h:1/2", {"transport": "tcp", "options": {"host": "h", "port": 1, "db": 2}}),
    ("rediss://u:p@h", {"transport": "tls",
                        "options": {"host": "h", "username": "u", "password": "p"}}),
    ("unix:///run/s?db=1", {"transport": "unix", "options": {"path": "/run/s", "db": 1}}),
    ("redis+sentinel://h1:1,h2,[::1]:3,[::2]/gpu",
     {"transport": "tcp", "service": "gpu", "options": {},
      "nodes": (("h1", 1), ("h2", 26379), ("::1", 3), ("::2", 26379))}),
    ("redis+sentinel://u:a%40b@h1/gpu-1/3?protocol=2&sentinel_username=s&sentinel_password=q%26",
     {"service": "gpu-1", "asking": {"username": "s", "password": "q&"},
      "options": {"username": "u", "password": "a@b", "db": 3, "protocol": 2}}),
    ("redis+sentinel://:p@h1/gpu", {"asking": {"username": None, "password": None},
                                    "options": {"password": "p"}}),
    ("rediss+sentinel://h1/gpu?ssl_ca_certs=ca.crt",
     {"transport": "tls", "options": {"ssl_ca_certs": "ca.crt"},
      "asking": {"ssl_ca_certs": "ca.crt", "username": None, "password": None}}),
    ("redis+cluster://h1:7000,h2", {"transport": "tcp", "service": "", "options": {},
                                    "nodes": (("h1", 7000), ("h2", 6379))}),
    ("rediss+cluster://u:p@h1/?ssl_cert_reqs=none",
     {"transport": "tls", "options": {"username": "u", "password": "p", "ssl_cert_reqs": "none"},
      "asking": {"username": "u", "password": "p", "ssl_cert_reqs": "none"}}),
]  # fmt: skip

WRONG = [
    ("", NO_URL),
    ("h:6379", NO_URL),
    ("http://h", NO_URL),
    ("redis://h:hunter2", NO_URL),
    ("redis+zookeeper://:hunter2@h", NO_URL),
    ("redis+sentinel://u:hunter2@h1:high/gpu", NO_URL),
    ("redis+sentinel://u:hunter2@h1:65536/gpu", NO_URL),
    ("redis+sentinel://u:hunter2@h1:0/gpu", NO_URL),
    ("redis+sentinel://u:hunter2@h1,,h2/gpu", NO_URL),
    ("redis+sentinel://u:hunter2@/gpu", NO_URL),
    ("redis+cluster://u:hunter2@h1 h2", NO_URL),
    ("redis+cluster://u:hunter2@h1?protocol=x", NO_URL),
    ("redis+sentinel://u:hunter2@h1,h2", NO_SERVICE),
    ("redis+sentinel://u:hunter2@h1,h2/", NO_SERVICE),
    ("redis+sentinel://u:hunter2@h1,h2//0", NO_SERVICE),
    ("redis+sentinel://u:hunter2@h1,h2/gpu/one", NO_SERVICE),
    ("redis+cluster://u:hunter2@h1,h2/0", NO_DATABASES),
    ("redis+cluster://u:hunter2@h1,h2?db=1", NO_DATABASES),
]


@pytest.mark.parametrize(("url", "means"), RIGHT, ids=[url for url, _ in RIGHT])
def test_url_says_where_and_how(url: str, means: dict[str, Any]) -> None:
    """Hosts, ports by default, credentials of the store and of its Sentinels, TLS."""
    found = parse(url)
    assert {name: getattr(found, name) for name in means} == means


@pytest.mark.parametrize(("url", "says"), WRONG, ids=[url for url, _ in WRONG])
@pytest.mark.parametrize("how", ["connect", "connect_async"])
def test_url_that_is_none_says_what_is_right(url: str, says: str, how: str) -> None:
    """A sentence, without the password; nothing is connected to."""
    with pytest.raises(ValueError, match=r"redis") as told:
        getattr(Store(url), how)()
    assert str(told.value) == says
    assert told.value.__suppress_context__ or told.value.__context__ is None


def test_store_shows_no_password() -> None:
    """Neither taken apart nor as a pool of connections, as a debugger or a log may print them."""
    url = "redis+sentinel://u:hunter2@h1/gpu?sentinel_password=hunter2"
    with Store(url).connect() as client:
        assert "hunter2" not in f"{parse(url)!r} {client!r} {client.connection_pool!r}"
