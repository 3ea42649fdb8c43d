"""`gpu-broker` and the SDK where they are put: odd users, locales, streams that take nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.api.brokers import PROGRAM, environment
from tests.pools import device

if TYPE_CHECKING:
    from pathlib import Path

    from tests.pools import Pool
    from tests.servers import Server

LATIN = {"LC_ALL": "de_DE.ISO-8859-1"}

ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}

SDK = """
from agent_sdk import LeaseClient
with LeaseClient.from_env() as client, client.lease("me", memory_mb=64) as lease:
    print(lease.devices[0].uuid)
"""


@pytest.fixture
def settings(server: Server, pool: Pool) -> dict[str, str]:
    """Settings of a pool with a device."""
    pool.report((device("D0"),), deadline_ms=86_400_000)
    pool_name = pool.keys.pool_name
    return {"REDIS_URL": server.url, "GPU_BROKER_POOL": pool_name, "GPU_BROKER_HOSTNAME": "h1"}


@pytest.fixture(scope="module")
def latin(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A locale of ISO 8859-1, made for the test."""
    if not shutil.which("localedef"):
        pytest.skip("localedef is not installed")
    folder = tmp_path_factory.mktemp("locales")
    made = subprocess.run(
        ["localedef", "-i", "de_DE", "-f", "ISO-8859-1", str(folder / "de_DE.ISO-8859-1")],
        capture_output=True, check=False,
    )  # fmt: skip
    if made.returncode:
        pytest.skip("this machine has no sources of locales")
    return {**LATIN, "LOCPATH": str(folder)}


def without(*names: str, **settings: str) -> dict[str, str]:
    """The environment without these."""
    env = environment(**settings)
    return {name: value for name, value in env.items() if name not in names}


def as_nobody_known(*command: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command as a uid without an entry in passwd."""
    unshare = ["unshare", "--user", "--map-user=54321"]
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespaces here")
    return subprocess.run(
        [*unshare, *command], env=env, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize("home", ["/", None])
def test_uid_without_a_passwd_entry_leases(settings: dict[str, str], home: str | None) -> None:
    """With HOME=/ as Docker sets it, or none: the SDK and run need neither name nor home."""
    env = without("HOME", "USER", "LOGNAME", "USERNAME", "LNAME", "XDG_STATE_HOME",
                  "GPU_BROKER_STATE_DIR", **settings)  # fmt: skip
    env |= {"HOME": home} if home else {}
    done = as_nobody_known(sys.executable, "-c", SDK, env=env)
    assert (done.stdout, done.stderr) == ("D0\n", "")
    for command in (["status"], ["leases"], ["events"], ["run", "--memory", "1MiB", "--", "true"]):
        done = as_nobody_known(PROGRAM, *command, env=env)
        assert done.returncode == 0, done.stderr
    assert "uid-54321@" in as_nobody_known(PROGRAM, "events", env=env).stdout


@pytest.mark.parametrize("command", [["status"], ["run", "true"], ["serve"], ["host"], ["doctor"]])
def test_user_without_a_home_is_told_what_to_set(command: list[str]) -> None:
    """The embedded store's folder cannot be known, and REDIS_URL is not set."""
    env = without("HOME", "REDIS_URL", "XDG_STATE_HOME", "GPU_BROKER_STATE_DIR")
    done = as_nobody_known(PROGRAM, *command, env=env)
    assert done.returncode in {1, 2}
    assert "GPU_BROKER_STATE_DIR" in done.stdout + done.stderr
    assert "no home folder" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


COMMANDS = (
    ["status"], ["queue"], ["leases"], ["events"], ["hosts"], ["doctor"], ["policy", "get"],
    ["explain", "--agent", "x", "--memory", "1MiB"], ["run", "--memory", "1MiB", "--", "true"],
    ["--help"], ["run", "--help"],
)  # fmt: skip


def check_all(settings: dict[str, str], locale: dict[str, str]) -> None:
    """Every command prints and none complains; a failure says which."""
    for command in COMMANDS:
        done = subprocess.run(
            [PROGRAM, *command], env=environment(**settings, **locale), capture_output=True,
            check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, (command, done.stderr[-500:])
        assert b"codec can't" not in done.stderr + done.stdout, command
    done = subprocess.run(
        [sys.executable, "-c", SDK], env=environment(**settings, **locale), capture_output=True,
        check=False, timeout=60,
    )  # fmt: skip
    assert done.stdout == b"D0\n", done.stderr[-500:]


def test_commands_in_the_c_locale(settings: dict[str, str]) -> None:
    """Scheduled jobs and old containers have it: the Lua files are read as what they are."""
    check_all(settings, ASCII)


def test_commands_in_a_locale_that_is_not_utf_8(
    settings: dict[str, str], latin: dict[str, str]
) -> None:
    """Letters that it lacks are question marks, what it has is right."""
    for command in ("drain", "undrain"):
        subprocess.run(
            [PROGRAM, command, "h1", "--reason", "grün → rot"], env=environment(**settings),
            check=True, capture_output=True,
        )  # fmt: skip
    check_all(settings, latin)
    done = subprocess.run(
        [PROGRAM, "events"], env=environment(**settings, **latin), capture_output=True, check=True
    )
    assert "grün ? rot".encode("latin-1") in done.stdout


def test_no_file_is_read_in_the_encoding_of_the_locale(settings: dict[str, str]) -> None:
    """Python itself tells of each that is."""
    env = environment(**settings, PYTHONWARNDEFAULTENCODING="1")
    done = subprocess.run(
        [sys.executable, "-W", "error::EncodingWarning", PROGRAM, "doctor"], env=env,
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert "EncodingWarning" not in done.stderr + done.stdout
    assert "h1:0" in done.stdout


def into(target: int | None, *command: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run with stdout closed (None) or into a descriptor."""
    shell = (
        [PROGRAM, *command]
        if target is not None
        else ["sh", "-c", 'exec "$@" >&-', "sh", PROGRAM, *command]
    )
    return subprocess.run(
        shell, env=environment(**settings), stdout=target, stderr=subprocess.PIPE, text=True,
        check=False, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize("command", ["status", "queue", "leases", "events", "hosts", "doctor"])
def test_closed_stdout_is_said(settings: dict[str, str], command: str) -> None:
    """A command that reads has nowhere to print: an error, in words."""
    done = into(None, command, **settings)
    assert (done.returncode, done.stderr) == (
        1, "Error: stdout is closed: open it, for example > FILE\n"
    )  # fmt: skip


@pytest.mark.parametrize(
    "command",
    ["policy get", "keys list", "hooks list", "functions source", "skill show", "completion sh"],
)
def test_closed_stdout_is_said_by_a_command_of_a_group(
    settings: dict[str, str], command: str
) -> None:
    """The others that read say the same."""
    done = into(None, *command.split(), **settings)
    assert (done.returncode, "stdout is closed" in done.stderr) == (1, True)


def test_no_key_is_made_that_cannot_be_printed(settings: dict[str, str], tmp_path: Path) -> None:
    """It cannot be read again, and the first one locks all clients without a key out."""
    file = tmp_path / "keys"
    done = into(None, "keys", "new", "ann", "--role", "viewer", "--file", str(file), **settings)
    assert (done.returncode, file.exists()) == (1, False)
    assert "stdout is closed" in done.stderr


@pytest.mark.parametrize(
    "command",
    [["status"], ["leases", "-o", "json"], ["policy", "get"], ["--help"], ["--version"],
     ["status", "--help"]],
)  # fmt: skip
def test_full_disk_is_said(settings: dict[str, str], command: list[str]) -> None:
    """Once, and the exit code tells."""
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        done = into(full, *command, **settings)
    finally:
        os.close(full)
    assert done.returncode == 1
    assert done.stderr == "Error: stdout cannot be written: No space left on device\n"


def test_run_needs_no_stdout(settings: dict[str, str], tmp_path: Path) -> None:
    """A command that acts does not need to print."""
    done = into(
        None, "run", "-q", "--memory", "1MiB", "--", "touch", str(tmp_path / "ran"), **settings
    )
    assert (done.returncode, (tmp_path / "ran").exists()) == (0, True), done.stderr


def test_closed_pool_is_no_server_to_start(settings: dict[str, str], pool: Pool) -> None:
    """It opens by itself: another broker would not help."""
    pool.redis.hset(pool.keys.pool, "closed_until_ms", 9_999_999_999_999)
    pool.redis.hincrby(pool.keys.pool, "sequence", 1)
    done = subprocess.run(
        [PROGRAM, "run", "--wait", "0", "--memory", "1MiB", "--", "true"],
        env=environment(**settings), capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    pool.redis.hset(pool.keys.pool, "closed_until_ms", 0)
    pool.redis.hincrby(pool.keys.pool, "sequence", 1)
    assert done.returncode == 69
    assert "it opens by itself" in done.stderr
    assert "gpu-broker serve" not in done.stderr


@pytest.mark.parametrize("command", ["status", "serve", "host"])
def test_state_folder_that_no_url_can_name_is_said(tmp_path: Path, command: str) -> None:
    """Its bytes are no UTF-8; a folder beside it would be taken for it."""
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe")
    done = subprocess.run(
        [PROGRAM, command], env=environment(GPU_BROKER_STATE_DIR=folder), capture_output=True,
        text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode in {1, 2}, done
    assert "is not named in UTF-8" in done.stderr
    assert "GPU_BROKER_STATE_DIR" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["status", "hooks list", "functions list", "policy get"])
def test_store_that_is_away_brings_a_way_out(command: str) -> None:
    """Each group of commands says it; the exit code tells, too."""
    done = subprocess.run(
        [PROGRAM, *command.split()], env=environment(REDIS_URL="redis://127.0.0.1:1"),
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 69
    assert "Redis cannot be reached" in done.stderr
    assert "Start that server, or name one that suits in REDIS_URL" in done.stderr
    assert "gpu-broker serve" not in done.stderr  # it starts no server where one is named


@pytest.mark.parametrize("command", ["status", "hooks list", "run --memory 1MiB -- true"])
def test_embedded_store_that_is_away_is_started_by_serve(command: str, tmp_path: Path) -> None:
    """No server is named, so it is the embedded one."""
    done = subprocess.run(
        [PROGRAM, *command.split()], env=environment(GPU_BROKER_STATE_DIR=str(tmp_path)),
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 69
    assert "tart one with: gpu-broker serve, or name its server in REDIS_URL" in done.stderr


@pytest.mark.parametrize(
    "command",
    ["run --or-cpu --memory 1MiB -- true", "hold --memory 1MiB", "drain h1", "functions load",
     "hooks add https://example.com/"],
)  # fmt: skip
def test_user_without_the_right_is_told_of_credentials(
    settings: dict[str, str], server: Server, command: str
) -> None:
    """Neither SAFE_MODE nor --or-cpu is a way out of it."""
    rights = ("~*", "&*", "+@all", "-evalsha", "-fcall", "-function", "-hsetnx", "-watch")
    with server.connect() as admin:
        admin.execute_command("ACL", "SETUSER", "guest", "reset", "on", ">x", *rights)
        try:
            guest = settings | {"REDIS_URL": server.url.replace("//", "//guest:x@")}
            done = subprocess.run(
                [PROGRAM, *command.split()], env=environment(**guest),
                capture_output=True, text=True, check=False, timeout=60,
            )  # fmt: skip
        finally:
            admin.execute_command("ACL", "DELUSER", "guest")
    assert (done.returncode, "ACL SETUSER" in done.stderr) == (77, True), done.stderr
    assert "SAFE_MODE" not in done.stderr
    assert "--or-cpu" not in done.stderr
