"""Parts of a store's URL: one server, or the nodes that know it, and the connection's options."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias
from urllib.parse import SplitResult, unquote, urlsplit

from agent_sdk.store.options import read_options

Address: TypeAlias = tuple[str, int]
"""Host and port."""

NO_URL = (
    "the store's URL must be redis://, rediss:// or unix://, redis+sentinel://h1,h2,h3/service or "
    "redis+cluster://h1,h2 (rediss+ for TLS), with ports that are numbers"
)
NO_SERVICE = (
    "a Sentinel's URL ends with the service that it watches, and perhaps a database: "
    "redis+sentinel://h1,h2,h3/service/0"
)
NO_DATABASE = (
    "a database is a number at the end of the store's URL: redis://host:6379/1, "
    "unix:///path?db=1; without one it is 0"
)
TWO_DATABASES = "the store's URL names two databases: say it once: redis://host/1"
TWO_PASSWORDS = "the store's URL has a password and a password_file: say one of them"
NO_PATH = "the URL of a unix socket has its whole path: unix:///run/redis.sock"

NOT_QUOTED = (
    "in the store's URL, redis://user:password@host/0, a password or a path has letters with a "
    "meaning in percent-encoding: # is %23, ? is %3F, / in a password is %2F, @ is %40, [ is %5B"
)

_SCHEME = re.compile(r"(?:rediss?(?:\+(?:sentinel|cluster))?|unix)://")
_MEANT = re.compile(r"[/?#\[\]]")

_GUIDED = re.compile(
    r"(?P<scheme>rediss?)\+(?P<by>sentinel|cluster)://"
    r"(?P<user>[^/?]*@)?(?P<nodes>[^/?@]+)(?P<path>/[^?]*)?(?P<query>\?.*)?"
)
_NODE = re.compile(r"(?:\[([^\[\]]+)\]|([^\s\[\]:]+))(?::(\d{1,5}))?")
_PATH = re.compile(r"/([^/]+)(/[^/]*)?")

_PORTS = {"sentinel": 26379, "cluster": 6379}

_TRANSPORTS: dict[str, Literal["tcp", "tls", "unix"]] = {
    "redis": "tcp", "rediss": "tls", "unix": "unix",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class StoreUrl:
    """Parts of a store's URL.

    Attributes:
        options: options of connections to the store, as redis-py's connections take them.
        nodes: the nodes that know the store: Sentinels, or nodes of a Cluster; empty: `options`
            has its address.
        service: its name at the Sentinels; empty: the nodes are a Cluster's.
        asking: options of connections to the nodes.
    """

    transport: Literal["tcp", "tls", "unix"]
    options: dict[str, Any] = field(repr=False)
    nodes: tuple[Address, ...] = ()
    service: str = ""
    asking: dict[str, Any] = field(default_factory=dict, repr=False)


def parse(url: str) -> StoreUrl:
    """Parse a store's URL.

    Raises:
        ValueError: it is invalid; the message never has a password.
    """
    scheme, guided = _SCHEME.match(url), _GUIDED.fullmatch(url)
    if scheme and "#" in url:
        raise ValueError(NOT_QUOTED)
    try:
        return _parse_guided(guided) if guided else _parse_single(url)
    except ValueError as error:
        if scheme and str(error) in {NO_URL, NO_DATABASE} and _is_cut(url[scheme.end() :]):
            raise ValueError(NOT_QUOTED) from None
        raise


def _is_cut(rest: str) -> bool:
    """Tell whether a URL, without its scheme, seems to end within its password."""
    cut = _MEANT.search(rest)
    return cut is not None and ":" in rest[: cut.start()] and "@" in rest[cut.start() :]


def _parse_single(url: str, *, sentinel: bool = False) -> StoreUrl:
    """Parse the URL of one server."""
    transport = _TRANSPORTS.get(url.partition("://")[0]) if "://" in url else None
    if transport is None:
        raise ValueError(NO_URL)
    try:
        found = urlsplit(url)
        port = found.port
        (found.hostname or "").encode("idna")  # a name that no resolver takes
    except ValueError:
        raise ValueError(NO_URL) from None
    options = read_options(found.query, tls=transport == "tls", sentinel=sentinel)
    if found.username:
        options["username"] = unquote(found.username)
    if found.password:
        options["password"] = unquote(found.password)
    _use_password_file(options)
    if transport == "unix":
        if found.hostname or not found.path:
            raise ValueError(NO_PATH)
        return StoreUrl(transport, options | {"path": unquote(found.path)})
    if port == 0:
        raise ValueError(NO_URL)
    if found.hostname:
        options["host"] = unquote(found.hostname)
    if port:
        options["port"] = port
    return StoreUrl(transport, options | _database_of(found, options.get("db")))


def _database_of(url: SplitResult, named: int | None) -> dict[str, int]:
    """Return the database in a URL's path, if there is one."""
    if url.path in {"", "/"}:
        return {}
    if not re.fullmatch(r"/\d{1,9}/?", url.path, re.ASCII):
        raise ValueError(NO_DATABASE)
    number = int(url.path.strip("/"))
    if named not in {None, number}:
        raise ValueError(TWO_DATABASES)
    return {"db": number}


def _parse_guided(url: re.Match[str]) -> StoreUrl:
    """Parse a URL with Sentinels or a Cluster's nodes."""
    scheme, by = url["scheme"], url["by"]
    service, database = _path_of(by, url["path"] or "/")
    nodes = tuple(_node(node, _PORTS[by]) for node in url["nodes"].split(","))
    user, query = url["user"] or "", url["query"] or ""
    single = _parse_single(f"{scheme}://{user}store{database}{query}", sentinel=bool(service))
    options = single.options
    del options["host"]
    asking = {name: options[name] for name in options if name.startswith("ssl_")}
    for name in ("username", "password"):
        asking[name] = options.pop(f"sentinel_{name}", None) if service else options.get(name)
    for name in ("password_file", "credential_provider"):
        found = options.pop(f"sentinel_{name}", None) if service else options.get(name)
        if found is not None:
            asking[name] = found
    _use_password_file(asking)
    return StoreUrl(single.transport, options, nodes, service, asking)


def _use_password_file(options: dict[str, Any]) -> None:
    """Read the password from its file for each connection, if a file is named."""
    path = options.pop("password_file", None)
    if path is None:
        return
    if options.pop("password", None):
        raise ValueError(TWO_PASSWORDS)
    from agent_sdk.store.credentials import PasswordFile  # noqa: PLC0415 - it brings redis-py

    options["credential_provider"] = PasswordFile(path, options.pop("username", None))


def _path_of(by: str, path: str) -> tuple[str, str]:
    """Return the service and the database's path in a path."""
    if by == "cluster":
        return "", path
    found = _PATH.fullmatch(path)
    if not found:
        raise ValueError(NO_SERVICE)
    return found[1], found[2] or ""


def _node(text: str, port: int) -> Address:
    found = _NODE.fullmatch(text)
    if not found or not 0 < int(found[3] or port) < 65536:  # noqa: PLR2004 - the last port
        raise ValueError(NO_URL)
    return found[1] or found[2], int(found[3] or port)
