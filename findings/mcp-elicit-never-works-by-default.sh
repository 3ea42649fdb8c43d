#!/bin/sh
# ctx.elicit(), which the server of the MCP Python SDK documents for asking the user inside a tool, fails in every call of the
# SDK's own client by default, although that client says that it can be asked: at the protocol of 2026-07-28 there is no way
# back inside a call. The failure is a protocol error, no tool error, so a model does not see it. A parameter that is
# resolved, Annotated[ElicitationResult[Q], Resolve(ask)], asks in both protocols.
# Seen with mcp 2.3.0: ctx.elicit is an MCPError with mode="auto" and works with mode="legacy"; the resolved parameter
# works with both.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check mcp==2.3.0
"$work/venv/bin/python" - <<'PYTHON'
import asyncio, sys
from typing import Annotated

from mcp import Client, MCPError
from mcp.server import MCPServer
from mcp.server.elicitation import ElicitationResult
from mcp.server.mcpserver import Context, Elicit, Resolve
from mcp_types import ElicitResult
from pydantic import BaseModel

class Word(BaseModel):
    yes: bool

server = MCPServer("asker", log_level="CRITICAL")

@server.tool()
async def by_context(ctx: Context) -> str:
    return (await ctx.elicit("may I?", Word)).action

async def question() -> Elicit[Word]:
    return Elicit("may I?", Word)

@server.tool()
async def by_parameter(word: Annotated[ElicitationResult[Word], Resolve(question)]) -> str:
    return word.action

async def answer(context, params) -> ElicitResult:
    return ElicitResult(action="accept", content={"yes": True})

async def told(mode: str, tool: str) -> str:
    async with Client(server, mode=mode, elicitation_callback=answer) as client:
        try:
            return (await client.call_tool(tool, {})).content[0].text
        except MCPError:
            return "MCPError"

async def main() -> bool:
    seen = [[await told(mode, tool) for tool in ("by_context", "by_parameter")] for mode in ("auto", "legacy")]
    print("auto {}, legacy {}".format(*seen))
    return seen == [["MCPError", "accept"], ["accept", "accept"]]

sys.exit(not asyncio.run(main()))
PYTHON
