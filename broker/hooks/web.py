"""Requests to webhooks: signed, to allowed addresses alone, with one deadline, never redirected."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final

import httpcore2
from standardwebhooks import Webhook

from broker import __version__
from broker.hooks.addresses import AddressRefused
from broker.hooks.hook import MOST
from broker.tasks import on_own_thread
from broker.text.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from broker.hooks.addresses import Addresses
    from broker.hooks.hook import Hook
    from broker.hooks.message import Message

ANSWER_S: Final = 10.0
"""Most seconds from looking up the name to the status of the answer."""

BODY_S: Final = 1.0
"""Most seconds for the beginning of its body, which is only shown."""

CONNECT_S: Final = 3.0
"""Most seconds for each address of a name."""

IDLE_S: Final = 20.0
"""Seconds for which an unused connection stays open."""

READ: Final = 16_384
"""Most bytes of an answer that are read."""

SHOWN: Final = 200
"""Most letters of an answer that are shown."""

OK: Final = range(200, 300)

GONE: Final = 410

REDIRECTS: Final = range(300, 400)

HTTP_FAILURES: Final = (
    httpcore2.NetworkError, httpcore2.TimeoutException, httpcore2.ProtocolError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class SendOutcome:
    """SendOutcome of one try.

    Attributes:
        taken: the receiver has it.
        said: for people: the status, or what was in the way.
        gone: the receiver wants nothing any more.
        retry_after_s: it asks for so long a pause.
        status: of its answer; None: there was none.
        answer: the beginning of its body.
    """

    taken: bool
    said: str
    gone: bool = False
    retry_after_s: float = 0.0
    status: int | None = None
    answer: str = ""


class CheckedNetwork(httpcore2.AsyncNetworkBackend):
    """Network that connects to allowed addresses alone."""

    def __init__(self, addresses: Addresses) -> None:
        self._addresses = addresses
        self._network = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's own form
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Look the name up, and connect to the first allowed address that answers.

        Raises:
            AddressRefused: no address is allowed.
        """
        found = await on_own_thread(
            lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM), "name of a webhook"
        )
        problem: Exception = OSError(f"{host} has no address")
        for address in dict.fromkeys(str(each[4][0]) for each in found):
            try:
                self._addresses.check(host, address)
                return await self._network.connect_tcp(
                    address, port, min(timeout or CONNECT_S, CONNECT_S), local_address,
                    socket_options,
                )  # fmt: skip
            except (AddressRefused, httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                problem = error
        raise problem


class WebClient:
    """Sender of requests, with connections that stay open for a while.

    Args:
        addresses: where requests may go.
    """

    def __init__(self, addresses: Addresses) -> None:
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=ssl.create_default_context(),
            max_connections=2 * MOST,
            keepalive_expiry=IDLE_S,
            network_backend=CheckedNetwork(addresses),
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._pool.aclose()

    async def send(self, hook: Hook, message: Message) -> SendOutcome:
        """Send a message once."""
        try:
            body = message.body()
            async with asyncio.timeout(ANSWER_S) as limit:
                return await self._post(hook.url, _headers(hook, message, body), body, limit)
        except TimeoutError:
            return SendOutcome(False, f"no answer within {ANSWER_S:g} s")
        except (OSError, httpcore2.NetworkError, httpcore2.TimeoutException) as error:
            return SendOutcome(False, str(error) or type(error).__name__)
        except (httpcore2.ProtocolError, httpcore2.UnsupportedProtocol) as error:
            return SendOutcome(False, f"no HTTP: {error}")
        except Exception as error:  # noqa: BLE001 - any client may have written the hook
            return SendOutcome(False, f"no request can be made of it: {error!r}")

    async def _post(
        self, url: str, headers: dict[str, str], body: bytes, limit: asyncio.Timeout
    ) -> SendOutcome:
        """Post once; `limit` ends with the status, which says all that counts."""
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        async with self._pool.stream("POST", url, headers=pairs, content=body) as response:
            limit.reschedule(None)
            told = {name.lower(): value.decode("latin-1") for name, value in response.headers}
            answer = printable((await _begin_of(response)).decode("utf-8", "replace")[:SHOWN])
            return outcome_of(response.status, told, answer)


async def _begin_of(response: httpcore2.Response) -> bytes:
    """Return the beginning of a body, as much of it as comes in time and in order."""
    read = b""
    with suppress(TimeoutError, OSError, *HTTP_FAILURES):
        async with asyncio.timeout(BODY_S):
            async for part in response.aiter_stream():
                read += part[: READ - len(read)]
                if len(read) >= READ:
                    break
    return read


def _headers(hook: Hook, message: Message, body: bytes) -> dict[str, str]:
    """Return the headers of a request, with the signature of exactly this body."""
    now = datetime.now(UTC)
    return {
        "content-type": "application/cloudevents+json",
        "user-agent": f"gpu-broker/{__version__}",
        "webhook-id": message.id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(hook.secret).sign(message.id, now, body.decode()),
    }


def outcome_of(status: int, headers: dict[bytes, str], answer: str) -> SendOutcome:
    """Return the outcome that an answer means."""
    said = f"status {status}"
    if status in REDIRECTS:
        said += ", and redirects are not followed: add the hook with the URL that it leads to"
    return SendOutcome(
        taken=status in OK,
        said=said,
        gone=status == GONE,
        retry_after_s=_seconds(headers.get(b"retry-after", "")),
        status=status,
        answer=answer,
    )


def _seconds(retry_after: str) -> float:
    """Return the pause that a header Retry-After asks for: seconds or a date; 0: none."""
    if retry_after.isdecimal():
        return float(retry_after[:9])
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, OverflowError):  # a year of twenty digits
        return 0.0
