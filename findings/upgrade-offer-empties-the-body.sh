#!/bin/sh
# A request that offers HTTP/2 (`Upgrade: h2c`), as Java's own HttpClient does on plain HTTP by default, reaches the
# application with an empty body if uvicorn parses with httptools (which it does once httptools is installed), and with its
# whole body if it parses with h11. An offer may be passed over (RFC 9110, 7.8), and uvicorn does so; the body goes missing on
# the way. The application says that the JSON is missing, and the caller sees that it was sent.
# Seen with uvicorn 0.54.0, httptools 0.9.0, h11 0.16.0: "h11 15 bytes, httptools 0 bytes".
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check uvicorn==0.54.0 httptools==0.9.0 h11==0.16.0
"$work/venv/bin/python" - <<'PYTHON'
import asyncio, socket, sys
import uvicorn

BODY = b'{"agent":"one"}'
REQUEST = (
    b"POST /lease HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nContent-Length: %d\r\nHost: localhost\r\n"
    b"HTTP2-Settings: AAEAAEAAAAIAAAAAAAMAAAAAAAQBAAAAAAUAAEAABgAGAAA\r\nUpgrade: h2c\r\n"
    b"Content-Type: application/json\r\n\r\n%b" % (len(BODY), BODY)
)

async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    headers = [(b"x-body-bytes", str(len(body)).encode()), (b"content-length", b"0")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body"})

async def body_bytes(parser: str) -> int:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, http=parser, lifespan="off", log_level="error"))
    serving = asyncio.create_task(server.serve([listener]))
    while not server.started:
        await asyncio.sleep(0.05)
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    writer.write(REQUEST)
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    writer.close()
    server.should_exit = True
    await serving
    return int(head.split(b"x-body-bytes: ")[1].split(b"\r\n")[0])

async def main() -> bool:
    h11, httptools = await body_bytes("h11"), await body_bytes("httptools")
    print(f"h11 {h11} bytes, httptools {httptools} bytes of {len(BODY)}")
    return (h11, httptools) == (len(BODY), 0)

sys.exit(not asyncio.run(main()))
PYTHON
