"""Failures to connect: nothing was sent, and some addresses cannot be right.

A refused port or a missing socket may be a server that restarts, so a call is tried again. A name
that does not resolve, a path that is too long, or TLS with a server that speaks none stays wrong:
the call ends at once with the reason.
"""

from __future__ import annotations

import errno
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse
from redis.exceptions import TimeoutError as RedisTimeoutError

from agent_sdk.lazy import LazyModule

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator

    from agent_sdk.store.url import Address
else:
    ssl = LazyModule("ssl")

PROBE_S: Final = 0.5
"""Most seconds of a probe for a server of the other kind."""

NO_NAME: Final = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}

NO_WAY: Final = {
    errno.EACCES: "this user may not read or connect to it",
    errno.EPERM: "this user may not read or connect to it",
    errno.ENOTDIR: "a part of the path is no folder",
    errno.ENAMETOOLONG: "a part of the path is too long",
    errno.ELOOP: "the path goes round in a circle",
}
"""System errors that a restart of the server does not mend."""

NO_CERTIFICATE: Final = "its certificate is not one that ssl_ca_certs or this machine trusts"
NO_TLS_FILE: Final = "a file that ssl_ca_certs, ssl_certfile or ssl_keyfile names cannot be read"
NO_TLS: Final = "the server there speaks no TLS: redis://, not rediss://"
ONLY_TLS: Final = "the server there speaks TLS alone: rediss://, not redis://"
NO_REDIS: Final = "what answers there is no Redis or Valkey"
LONG_PATH: Final = "the path of the socket is too long: GPU_BROKER_STATE_DIR names a shorter folder"
UNKNOWN_NAME: Final = "no machine has that name"


def mark_unsent(error: Exception, hopeless: str = "") -> None:
    """Mark an error: its call was not sent. `hopeless`: the reason against another try."""
    vars(error).update(unsent=True, hopeless=hopeless)


def never_sent(error: BaseException) -> bool:
    """Tell whether no part of the call left this process."""
    return bool(getattr(error, "unsent", False)) or _connecting(error)


def hopeless(error: BaseException) -> str:
    """Return the reason for which the address cannot be right; empty: it may be."""
    return getattr(error, "hopeless", "")


def why_hopeless(error: Exception, *, tls: bool = False) -> str:
    """Return the reason against another connect; empty: the next one may work."""
    for cause in _causes(error):
        if isinstance(cause, socket.gaierror):
            return UNKNOWN_NAME if cause.errno in NO_NAME else ""
        if isinstance(cause, ssl.SSLCertVerificationError):
            return NO_CERTIFICATE
        if isinstance(cause, (ssl.SSLEOFError, ssl.SSLZeroReturnError, TimeoutError)):
            return ""
        if isinstance(cause, ssl.SSLError):
            return NO_TLS if cause.reason == "WRONG_VERSION_NUMBER" else _tls_failed(cause)
        if isinstance(cause, OSError):
            return _no_way(cause, tls=tls)
    return NO_REDIS if isinstance(error, InvalidResponse) else ""


def other_way(error: Exception, *, tls: bool) -> tuple[Callable[[Address], bool], str] | None:
    """Return the probe for a server with TLS where we use none, or the other way round.

    Returns:
        A question that may block for `PROBE_S`, and the meaning of a yes. None: the failure has
        another reason.
    """
    cut_off = any(map(_hung_up, _causes(error)))
    if tls:
        hung = isinstance(error, RedisTimeoutError)
        return (speaks_plainly, NO_TLS) if hung or cut_off else None
    # Not its subclasses: those are a server's own words.
    cut_off |= type(error) in {RedisConnectionError, InvalidResponse} and not _connecting(error)
    return (speaks_tls, ONLY_TLS) if cut_off else None


def speaks_tls(address: Address) -> bool:
    """Tell whether a server that hangs up on plain words greets in TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection(address, PROBE_S) as plain:
            context.wrap_socket(plain).close()
    except ssl.SSLCertVerificationError:
        return True
    except ssl.SSLError as refused:  # an alert, for example about a missing certificate of ours
        return "ALERT" in (refused.reason or "")
    except OSError:
        return False
    return True


def speaks_plainly(address: Address) -> bool:
    """Tell whether a server that is silent to TLS answers as Redis does."""
    with suppress(OSError), socket.create_connection(address, PROBE_S) as plain:
        plain.settimeout(PROBE_S)
        plain.sendall(b"PING\r\n")
        return plain.recv(1) in {b"+", b"-"}
    return False


def _hung_up(error: BaseException) -> bool:
    """Tell whether a server hung up, as on an unknown protocol."""
    if isinstance(error, (ConnectionResetError, BrokenPipeError)):
        return True
    return isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError))


def _connecting(error: BaseException) -> bool:
    """Tell whether redis-py reports a connection that never stood."""
    return "connecting" in str(error)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the errors behind an error, the nearest first."""
    cause = error.__cause__ or error.__context__
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _tls_failed(error: ssl.SSLError) -> str:
    return f"TLS fails: {error.reason or error}"


def _no_way(error: OSError, *, tls: bool) -> str:
    if error.errno is None and "too long" in str(error):
        return LONG_PATH
    if tls and error.errno in {errno.ENOENT, errno.EACCES, errno.EISDIR}:
        return NO_TLS_FILE
    return NO_WAY.get(error.errno or 0, "")
