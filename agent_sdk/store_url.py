"""What a store's URL says: one server, those who know where it is, and how to connect."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from redis.connection import parse_url

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
NO_DATABASES = "a Cluster has no databases: redis+cluster://h1,h2 ends with its nodes"

_GUIDED = re.compile(
    r"(?P<scheme>rediss?)\+(?P<by>sentinel|cluster)://"
    r"(?P<user>[^/?]*@)?(?P<nodes>[^/?@]+)(?P<path>/[^?]*)?(?P<query>\?.*)?"
)
_NODE = re.compile(r"(?:\[([^\[\]]+)\]|([^\s\[\]:]+))(?::(\d{1,5}))?")
_PATH = re.compile(r"/([^/]+)(?:/(\d*))?")

_PORTS = {"sentinel": 26379, "cluster": 6379}

_TRANSPORTS: dict[str, Literal["tcp", "tls", "unix"]] = {
    "redis": "tcp", "rediss": "tls", "unix": "unix",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class StoreUrl:
    """A store's URL, taken apart.

    Attributes:
        options: of connections to the store, as redis-py's connections take them.
        nodes: who knows where the store is: Sentinels, or nodes of a Cluster; none: it is where
            `options` says.
        service: what the Sentinels call it; empty: the nodes are a Cluster's.
        asking: options of connections to the nodes.
    """

    transport: Literal["tcp", "tls", "unix"]
    options: dict[str, Any] = field(repr=False)
    nodes: tuple[Address, ...] = ()
    service: str = ""
    asking: dict[str, Any] = field(default_factory=dict, repr=False)


def parse(url: str) -> StoreUrl:
    """Take a URL apart.

    Raises:
        ValueError: it is none; the words never hold a password.
    """
    guided = _GUIDED.fullmatch(url)
    if guided:
        return _parse_guided(guided)
    try:
        options = parse_url(url)  # type: ignore[no-untyped-call] # untyped in redis-py
    except ValueError:
        raise ValueError(NO_URL) from None
    options.pop("connection_class", None)  # the blocking one
    return StoreUrl(_TRANSPORTS[url.partition(":")[0]], options)


def _parse_guided(url: re.Match[str]) -> StoreUrl:
    scheme, by = url["scheme"], url["by"]
    service, db = _path_of(by, url["path"] or "/")
    nodes = tuple(_node(node, _PORTS[by]) for node in url["nodes"].split(","))
    single = parse(f"{scheme}://{url['user'] or ''}store/{db}{url['query'] or ''}")
    options = single.options
    del options["host"]
    if by == "cluster" and options.get("db"):
        raise ValueError(NO_DATABASES)
    asking = {name: options[name] for name in options if name.startswith("ssl_")}
    for name in ("username", "password"):
        asking[name] = options.pop(f"sentinel_{name}", None) if service else options.get(name)
    return StoreUrl(single.transport, options, nodes, service, asking)


def _path_of(by: str, path: str) -> tuple[str, str]:
    """The service and the database that a path names."""
    if by == "cluster":
        if path != "/":
            raise ValueError(NO_DATABASES)
        return "", ""
    found = _PATH.fullmatch(path)
    if not found:
        raise ValueError(NO_SERVICE)
    return found[1], found[2] or ""


def _node(text: str, port: int) -> Address:
    found = _NODE.fullmatch(text)
    if not found or not 0 < int(found[3] or port) < 65536:  # noqa: PLR2004 - the last port
        raise ValueError(NO_URL)
    return found[1] or found[2], int(found[3] or port)
