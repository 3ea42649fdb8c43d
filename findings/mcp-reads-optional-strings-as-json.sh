#!/bin/sh
# The MCP server of the Python SDK reads the text of a tool's argument as JSON if the argument is declared `str | None`, and
# takes it as it is if declared `str`. So an agent whose name is the four letters null is nobody, and a holder's note that
# begins like JSON ("[draft]" does not, "[1]" does) is refused as "not a valid string" although a string was sent.
# Seen with mcp 2.3.0: holder "null" arrives as 'null' for `str` and as None for `str | None`; "[1]" as '[1]' and as an error.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check mcp==2.3.0
"$work/venv/bin/python" - <<'PYTHON'
import asyncio, sys
from mcp.server import MCPServer

server = MCPServer("pool")

@server.tool()
def plain(holder: str = "") -> str:
    return repr(holder)

@server.tool()
def optional(holder: str | None = "") -> str:
    return repr(holder)

async def told(tool: str, holder: str) -> str:
    try:
        return (await server.call_tool(tool, {"holder": holder})).content[0].text
    except Exception as error:
        return "an error" if "valid string" in str(error) else repr(error)

async def main() -> bool:
    seen = [[await told(tool, holder) for tool in ("plain", "optional")] for holder in ("null", "[1]", "one")]
    print("null {}, [1] {}, one {}".format(*seen))
    return seen == [["'null'", "None"], ["'[1]'", "an error"], ["'one'", "'one'"]]

sys.exit(not asyncio.run(main()))
PYTHON
