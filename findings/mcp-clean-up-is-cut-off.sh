#!/bin/sh
# The clean-up of an MCP server over stdio, the part of its lifespan after the yield, ends at its first await if the client
# dies during a call: the answer meets a broken pipe, and that cancels the scope in which the clean-up runs. After a clean
# end of stdin, or a death between two calls, all of it runs. So a server that gives back four things at its end gives back
# none of them, in the one case in which no other program can.
# Seen with mcp 2.3.0: with no call in flight the clean-up reaches its end, with one it does not.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check mcp==2.3.0
cat > "$work/server.py" <<'PYTHON'
import asyncio, sys
from contextlib import asynccontextmanager
from mcp.server import MCPServer

@asynccontextmanager
async def lifespan(_):
    try:
        yield
    finally:
        open(sys.argv[1] + ".begun", "w").close()
        await asyncio.sleep(0.2)  # as a call over the network takes
        open(sys.argv[1] + ".done", "w").close()

server = MCPServer("holder", lifespan=lifespan, log_level="CRITICAL")

@server.tool()
async def slow() -> str:
    await asyncio.sleep(10)
    return "late"

server.run("stdio")
PYTHON
"$work/venv/bin/python" - "$work" <<'PYTHON'
import json, pathlib, subprocess, sys, time
work = pathlib.Path(sys.argv[1])

def end(name: str, *, in_a_call: bool) -> tuple[bool, bool]:
    server = subprocess.Popen([sys.executable, work / "server.py", work / name], text=True, stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    def send(**message):
        server.stdin.write(json.dumps({"jsonrpc": "2.0"} | message) + "\n")
        server.stdin.flush()
    about = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "0"}}
    send(id=1, method="initialize", params=about)
    server.stdout.readline()
    send(method="notifications/initialized")
    if in_a_call:
        send(id=2, method="tools/call", params={"name": "slow", "arguments": {}})
        time.sleep(0.5)
    server.stdout.close()  # as a client that is killed
    server.stdin.close()
    server.wait(20)
    return tuple((work / f"{name}.{what}").exists() for what in ("begun", "done"))

seen = [end("idle", in_a_call=False), end("busy", in_a_call=True)]
print("idle: begun {} done {}; in a call: begun {} done {}".format(*seen[0], *seen[1]))
sys.exit(seen != [(True, True), (True, False)])
PYTHON
