"""Compile every script and library as Redis would, without a server: `make check` runs it."""

import sys

import lupa.lua51

from agent_sdk.scripts.library import library, own_library
from agent_sdk.scripts.source import scripts


def main() -> int:
    """0 when all compile; otherwise each error, with its line in the assembled source."""
    lua = lupa.lua51.LuaRuntime()
    failed = 0
    sources = {verb: script.source for verb, script in scripts().items()}
    sources |= {each.name: each.source for each in (library(), own_library())}
    for name, source in sources.items():
        _, _, body = source.partition("\n")  # the server takes the #!lua line itself
        try:
            lua.compile(body)
        except lupa.lua51.LuaError as error:
            failed += 1
            print(f"{name}: {error}", file=sys.stderr)
    print(f"{len(sources) - failed} Lua sources compile")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
