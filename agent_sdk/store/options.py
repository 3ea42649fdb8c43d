"""Options that a store's URL may carry after `?`: an allow-list, each with its own form.

redis-py takes any name as an argument of its connections. A misspelt one is then a TypeError in the
middle of a call. One that changes the reading of answers, or repeats calls unseen, breaks the SDK's
promises. So an unlisted option is refused by name before any connect.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl

if TYPE_CHECKING:
    from collections.abc import Callable

_NAME: Final = re.compile(r"[a-z_]{1,40}")
"""Form of a name that is safe to quote: any other text may be a part of a password."""

_WORDS: Final = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}

_CERTIFICATES: Final = ("none", "optional", "required")

_CLIENT_NAME: Final = re.compile(r"[!-~]+")

_TLS_VERSIONS: Final = {"771": 771, "772": 772}

_SINCE_ELSEWHERE: Final = {
    "max_connections": "a client opens one connection for each thread that calls at that moment",
    "decode_responses": "the SDK reads answers as UTF-8",
    "encoding": "the SDK reads answers as UTF-8",
    "encoding_errors": "the SDK reads answers as UTF-8",
    "retry_on_timeout": "the SDK repeats calls by itself, by their token",
    "retry_on_error": "the SDK repeats calls by itself, by their token",
}
"""Options of redis-py that cannot be set here, each with the reason."""


@dataclass(frozen=True, slots=True)
class _Option:
    """Option with its reader, its form in words, and the prefix of its names."""

    read: Callable[[str], Any]
    form: str


def read_options(query: str, *, tls: bool, sentinel: bool) -> dict[str, Any]:
    """Read the options of a URL.

    Args:
        query: the text after `?`, still quoted.
        tls: the scheme is `rediss`: options that begin with `ssl_` are allowed.
        sentinel: the URL names Sentinels: options that begin with `sentinel_` are allowed.

    Raises:
        ValueError: an option is not allowed or its value has another form; no value is quoted.
    """
    options: dict[str, Any] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name in options:
            raise ValueError(f"the store's URL says {name} twice: once is enough")
        options[name] = _read_option(name, text, tls=tls, sentinel=sentinel)
    return options


def _read_option(name: str, text: str, *, tls: bool, sentinel: bool) -> Any:
    option = _OPTIONS.get(name)
    if option is None:
        raise ValueError(_not_allowed(name, tls=tls, sentinel=sentinel))
    if name.startswith("ssl_") and not tls:
        raise ValueError(f"the option {name} of the store's URL needs TLS: rediss:// has it")
    if name.startswith("sentinel_") and not sentinel:
        raise ValueError(f"the option {name} of the store's URL needs redis+sentinel://")
    try:
        return option.read(text)
    except (KeyError, ValueError):
        raise ValueError(f"{name} in the store's URL must be {option.form}") from None


def _not_allowed(name: str, *, tls: bool, sentinel: bool) -> str:
    named = f" {name}" if _NAME.fullmatch(name) else ""
    why = f" ({_SINCE_ELSEWHERE[name]})" if name in _SINCE_ELSEWHERE else ""
    allowed = [
        other
        for other in _OPTIONS
        if (tls or not other.startswith("ssl_")) and (sentinel or not other.startswith("sentinel_"))
    ]
    return (
        f"the store's URL has an option{named} that it cannot have{why}; "
        f"it may have {', '.join(allowed)}"
    )


def _database(text: str) -> int:
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII):
        raise ValueError(text)
    return int(text)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not math.isfinite(seconds) or seconds <= 0:
        raise ValueError(text)
    return seconds


def _interval(text: str) -> float:
    return 0.0 if text == "0" else _seconds(text)


def _protocol(text: str) -> int:
    return {"2": 2, "3": 3}[text]


def _word(text: str) -> bool:
    return _WORDS[text.lower()]


def _certificates(text: str) -> str:
    return _CERTIFICATES[_CERTIFICATES.index(text.lower())]


def _client_name(text: str) -> str:
    if not _CLIENT_NAME.fullmatch(text):
        raise ValueError(text)
    return text


def _something(text: str) -> str:
    if not text:
        raise ValueError(text)
    return text


_ANY: Final = _Option(str, "any text")
_SECONDS: Final = _Option(_seconds, "a number of seconds above 0")
_TRUTH: Final = _Option(_word, "true or false")
_PATH: Final = _Option(_something, "the path of a file or folder")

_OPTIONS: Final = {
    "db": _Option(_database, "the number of a database"),
    "username": _ANY,
    "password": _ANY,
    "password_file": _PATH,
    "client_name": _Option(_client_name, "printable ASCII letters without blanks"),
    "protocol": _Option(_protocol, "2 or 3"),
    "socket_timeout": _SECONDS,
    "socket_connect_timeout": _SECONDS,
    "socket_keepalive": _TRUTH,
    "health_check_interval": _Option(_interval, "a number of seconds, 0 for none"),
    "ssl_ca_certs": _PATH,
    "ssl_ca_path": _PATH,
    "ssl_ca_data": _Option(_something, "certificates in PEM"),
    "ssl_certfile": _PATH,
    "ssl_keyfile": _PATH,
    "ssl_password": _ANY,
    "ssl_cert_reqs": _Option(_certificates, "none, optional or required"),
    "ssl_check_hostname": _TRUTH,
    "ssl_ciphers": _Option(_something, "OpenSSL's names of ciphers"),
    "ssl_min_version": _Option(_TLS_VERSIONS.__getitem__, "771 (TLS 1.2) or 772 (TLS 1.3)"),
    "sentinel_username": _ANY,
    "sentinel_password": _ANY,
    "sentinel_password_file": _PATH,
}
"""Options by name, as redis-py's connections take them."""
