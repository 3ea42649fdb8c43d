"""The forms of a store's URL, and the errors for text that is none."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from redis.exceptions import TimeoutError  # noqa: A004 - redis-py's name for it

from agent_sdk import Store
from agent_sdk.store.url import (
    NO_DATABASE,
    NO_PATH,
    NO_SERVICE,
    NO_URL,
    NOT_QUOTED,
    TWO_DATABASES,
    parse,
)

if TYPE_CHECKING:
    from tests.servers import Server

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
    ("redis://h/2/?db=2", {"options": {"host": "h", "db": 2}}),
    ("redis://:6380", {"options": {"port": 6380}}),
    ("redis+cluster://h1/3", {"options": {"db": 3}}),
    ("redis+cluster://h1?db=3", {"options": {"db": 3}}),
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
    ("redis+sentinel://u:hunter2@h1,h2", NO_SERVICE),
    ("redis+sentinel://u:hunter2@h1,h2/", NO_SERVICE),
    ("redis+sentinel://u:hunter2@h1,h2//0", NO_SERVICE),
    ("redis+sentinel://u:hunter2@h1,h2/gpu/one", NO_DATABASE),
    ("redis+sentinel://u:hunter2@h1,h2/gpu/0/1", NO_SERVICE),
    ("redis+cluster://u:hunter2@h1,h2/gpu", NO_DATABASE),
    ("redis://:hunter2@h:0/1", NO_URL),
    ("redis://:hunter2@a..b/1", NO_URL),
    (f"redis://:hunter2@{'h' * 64}/1", NO_URL),
    ("redis://:hunter2@h/gpu", NO_DATABASE),
    ("redis://:hunter2@h/1x", NO_DATABASE),
    ("redis://:hunter2@h/0/1", NO_DATABASE),
    ("redis://:hunter2@h/-1", NO_DATABASE),
    ("redis://:hunter2@h/\u0661", NO_DATABASE),
    ("redis://:hunter2@h/%31", NO_DATABASE),
    ("redis://:hunter2@h/1?db=2", TWO_DATABASES),
    ("redis://:hun/ter2@h/0", NOT_QUOTED),
    ("redis://u:hun?ter2@h:1/0", NOT_QUOTED),
    ("redis://:hun#ter2@h", NOT_QUOTED),
    ("redis://:p@ss/hunter2@h/0", NOT_QUOTED),
    ("rediss://:[hunter2]@h", NOT_QUOTED),
    ("redis+cluster://:hun/ter2@h1,h2", NOT_QUOTED),
    ("redis+sentinel://:hun#ter2@h1,h2/gpu", NOT_QUOTED),
    ("redis://:12#hunter2@h/0", NOT_QUOTED),
    ("redis://:hunter2@h/0#", NOT_QUOTED),
    ("unix:///run/a#b.sock", NOT_QUOTED),
    ("unix://:hunter2@run/s", NO_PATH),
    ("unix://:hunter2@", NO_PATH),
]

WRONG_OPTIONS = [
    ("foo=bar", "an option foo that it cannot have"),
    ("timeout=3", "an option timeout that it cannot have"),
    ("max_connections=1", "one connection for each thread"),
    ("decode_responses=false", "reads answers as UTF-8"),
    ("encoding=latin-1", "reads answers as UTF-8"),
    ("retry_on_timeout=true", "repeats calls by itself"),
    ("legacy_responses=false", "it may have db, username"),
    ("host=other", "an option host that"),
    ("hunter2/h=", "an option that it cannot have"),
    ("ssl_ca_certs=/ca.crt", "needs TLS: rediss://"),
    ("sentinel_password=hunter2", "needs redis+sentinel://"),
    ("db=gpu", "db in the store's URL must be the number of a database"),
    ("db=-1", "the number of a database"),
    ("db=", "the number of a database"),
    ("client_name=my%20app", "printable ASCII letters without blanks"),
    ("client_name=%C3%BC", "printable ASCII letters without blanks"),
    ("client_name=", "printable ASCII letters without blanks"),
    ("socket_timeout=abc", "a number of seconds above 0"),
    ("socket_timeout=0", "a number of seconds above 0"),
    ("socket_connect_timeout=-1", "a number of seconds above 0"),
    ("socket_timeout=inf", "a number of seconds above 0"),
    ("socket_timeout=nan", "a number of seconds above 0"),
    ("health_check_interval=often", "a number of seconds, 0 for none"),
    ("socket_keepalive=perhaps", "true or false"),
    ("protocol=4", "2 or 3"),
    ("protocol=2&protocol=3", "says protocol twice"),
]
"""Options of a URL without TLS, and what is said of each."""

WRONG_TLS_OPTIONS = [
    ("ssl_cert_reqs=CERT_NONE", "none, optional or required"),
    ("ssl_check_hostname=maybe", "true or false"),
    ("ssl_ca_certs=", "the path of a file or folder"),
    ("ssl_min_version=TLSv1", "771 (TLS 1.2) or 772 (TLS 1.3)"),
    ("ssl_ca_cert=/x", "ssl_ca_certs, ssl_ca_path"),
]

ALLOWED = (
    "username=u&password=p&client_name=app-1&protocol=2&socket_timeout=2.5"
    "&socket_connect_timeout=1&socket_keepalive=true&health_check_interval=30"
)


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


@pytest.mark.parametrize(("option", "says"), WRONG_OPTIONS, ids=[each for each, _ in WRONG_OPTIONS])
@pytest.mark.parametrize(
    "where", ["redis://u:hunter2@h/", "redis+cluster://:hunter2@h1,h2", "unix:///s"]
)
def test_option_is_refused_by_name(where: str, option: str, says: str) -> None:
    """At once and in words that say what is allowed; no value is quoted, it may be a password."""
    with pytest.raises(ValueError, match="store's URL") as told:
        Store(f"{where}?{option}").connect()
    assert says in str(told.value)
    assert "hunter2" not in str(told.value)


@pytest.mark.parametrize(("option", "says"), WRONG_TLS_OPTIONS)
def test_option_of_tls_is_refused_by_name(option: str, says: str) -> None:
    """With TLS there are more options, each with its form."""
    for scheme in ("rediss://h", "rediss+sentinel://h/gpu"):
        with pytest.raises(ValueError, match="store's URL") as told:
            Store(f"{scheme}?{option}").connect()
        assert says in str(told.value)


async def test_allowed_options_reach_redis_py(server: Server) -> None:
    """None is a name that redis-py's connections do not take; blocking ones and asyncio's alike."""
    quoted = ALLOWED.replace("username=u&password=p&", "")
    for url in (
        f"{server.url}?{quoted}",
        f"{server.socket_url}?{quoted.replace('socket_keepalive=true&', '')}",
    ):
        with Store(url).connect() as client:
            assert client.client_getname() == "app-1"
        async with Store(url).connect_async() as client:
            assert await client.client_getname() == "app-1"


def test_answers_of_blocking_calls_are_waited_for(server: Server) -> None:
    """socket_timeout is how long an answer may be late, not how long a call may block."""
    store = Store(f"{server.url}?socket_timeout=0.2", blocks_s=1.0)
    with store.connect() as client:
        assert client.blpop(["nothing"], timeout=0.6) is None
    with replace(store, blocks_s=0.0).connect() as client, pytest.raises(TimeoutError):
        client.blpop(["nothing"], timeout=0.6)


def test_store_shows_no_password() -> None:
    """Neither taken apart nor as a pool of connections, as a debugger or a log may print them."""
    url = "redis+sentinel://u:hunter2@h1/gpu?sentinel_password=hunter2"
    with Store(url).connect() as client:
        assert "hunter2" not in f"{parse(url)!r} {client!r} {client.connection_pool!r}"
