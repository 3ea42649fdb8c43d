"""Write docs/design/modules.md: each room with its modules, from the first lines of docstrings.

--check writes nothing, and exits with 1 when the file is not what it should be.
"""

from __future__ import annotations

import argparse
import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.imports import FLOORS, modules, room_of  # noqa: E402 - the checkout is on the path by now

TARGET = ROOT / "docs" / "design" / "modules.md"

HEAD = """\
# Module map

**For** readers of the code: which module does what.
`python scripts/module_map.py` writes this page; a test compares it with the code.

The layers are `lua` <- `agent_sdk` <- `broker`: each knows only what stands left of it.
Inside them each room (a folder, or a module directly in a package) stands on a floor, and imports
only from lower floors. No module and no room is part of a circle; a test holds that too.
Imports for types alone do not count.
"""


def first_line(path: Path) -> str:
    """Return the first line of a module's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]


def room_section(room: str, members: list[str]) -> list[str]:
    """Return the lines about one room that is a folder."""
    said = first_line(modules()[room])
    lines = [
        f"### `{room.replace('.', '/')}/`",
        "",
        said,
        "",
        "| Module | What it is |",
        "|---|---|",
    ]
    for name in members:
        short = name.removeprefix(f"{room}.").replace(".", "/")
        lines.append(f"| `{short}` | {first_line(modules()[name])} |")
    return [*lines, ""]


def floor_section(number: int, rooms: set[str]) -> list[str]:
    """Return the lines about one floor: its single modules, then its folders."""
    members: dict[str, list[str]] = {room: [] for room in sorted(rooms)}
    for name in modules():
        if (room := room_of(name)) in rooms and name != room:
            members[room].append(name)
    lines = [f"## Floor {number}", ""]
    single = [room for room, found in members.items() if not found]
    if single:
        lines += ["| Module | What it is |", "|---|---|"]
        lines += [f"| `{x.replace('.', '/')}` | {first_line(modules()[x])} |" for x in single]
        lines.append("")
    for room, found in members.items():
        if found:
            lines += room_section(room, found)
    return lines


def page() -> str:
    """Return the whole page."""
    rooms = sum(map(len, FLOORS))
    counts = f"{len(modules())} modules in {rooms} rooms on {len(FLOORS)} floors."
    lines = [HEAD, counts, ""]
    for number, floor in enumerate(FLOORS):
        lines += floor_section(number, floor)
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    text = page()
    if not parser.parse_args().check:
        TARGET.write_text(text, encoding="utf-8")
        return 0
    if TARGET.read_text(encoding="utf-8") == text:
        return 0
    print(f"{TARGET.relative_to(ROOT)} is not as generated: run python scripts/module_map.py",
          file=sys.stderr)  # fmt: skip
    return 1


if __name__ == "__main__":
    sys.exit(main())
