"""Compile every verb's script as Redis would, without a server: `make check` runs it."""

import sys

import lupa.lua51

from agent_sdk.scripts import scripts


def main() -> int:
    """0 when every script compiles; otherwise each error, with its line in the assembled script."""
    lua = lupa.lua51.LuaRuntime()
    failed = 0
    for script in scripts().values():
        _, _, body = script.source.partition("\n")  # the server takes the #!lua line itself
        try:
            lua.compile(body)
        except lupa.lua51.LuaError as error:
            failed += 1
            print(f"{script.verb}: {error}", file=sys.stderr)
    print(f"{len(scripts()) - failed} Lua scripts compile")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
