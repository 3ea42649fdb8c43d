"""The scripts beside the units: a real broker, and a systemctl that writes down its calls."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2
import pytest

from tests.api.brokers import GRANTING, Broker, environment, eventually
from tests.servers import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers import Server

ROOT = Path(__file__).parents[2]
SYSTEMD = ROOT / "deploy" / "systemd"

SYSTEMCTL = """#!/bin/sh
echo "$@" >> "{folder}/calls"
case $1 in
  is-active) cat "{folder}/state-$2" 2>/dev/null || echo inactive; exit 0 ;;
  enable) [ ! -e "{folder}/broken-$3" ] ;;
esac
"""


class Systemctl:
    """A stand-in for a running systemd."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        program = folder / "systemctl"
        program.write_text(SYSTEMCTL.format(folder=folder))
        program.chmod(0o755)

    def sets(self, agent: str, state: str) -> None:
        (self._folder / f"state-justnews@{agent}").write_text(state)

    def breaks(self, agent: str) -> None:
        (self._folder / f"broken-justnews@{agent}").touch()

    @property
    def enabled(self) -> list[str]:
        """The agents whose units were enabled and started, in order."""
        calls = self._folder / "calls"
        lines = calls.read_text().splitlines() if calls.exists() else []
        return [x.rpartition("@")[2] for x in lines if x.startswith("enable --now ")]


@pytest.fixture
def systemctl(tmp_path: Path) -> Systemctl:
    return Systemctl(tmp_path)


@pytest.fixture(scope="module")
def broker(server: Server) -> Iterator[Broker]:
    with Broker(**GRANTING, REDIS_URL=server.url, GPU_BROKER_POOL="deploy") as broker:
        yield broker.wait()


@contextmanager
def unready() -> Iterator[Broker]:
    """Alive, and nobody listens where its store should be."""
    with Broker(**GRANTING, REDIS_URL=f"redis://127.0.0.1:{free_port()}") as broker:
        yield broker.wait("/health")


def call(
    script: str, *args: str, path: Path | None = None, **settings: str
) -> subprocess.CompletedProcess[str]:
    env = environment(**settings)
    if path is not None:
        env["PATH"] = f"{path}:{env['PATH']}"
    return subprocess.run(
        [SYSTEMD / script, *args], env=env, capture_output=True, text=True, timeout=30, check=False
    )


def ports(**agents: int) -> dict[str, str]:
    """The agents' ports, as the environment names them; nobody listens on the others'."""
    nobody = {name: free_port() for name in ("gpu_orchestrator", "analyst", "scout", "critic")}
    return {f"{name.upper()}_PORT": str(port) for name, port in (nobody | agents).items()}


def test_ready_is_0_when_it_is_and_1_with_the_reason(broker: Broker) -> None:
    """By host and port, or by ports.env and the environment."""
    done = call("orchestrator-ready.sh", "127.0.0.1", str(broker.port))
    assert (done.returncode, done.stderr) == (0, "")
    done = call("orchestrator-ready.sh", **ports(gpu_orchestrator=broker.port))
    assert done.returncode == 0
    with unready() as other:
        began = time.monotonic()
        done = call("orchestrator-ready.sh", "localhost", str(other.port), TIMEOUT="1")
        assert time.monotonic() - began < 5
        assert done.returncode == 1
        assert "Redis cannot be reached" in done.stderr


def test_ready_waits_until_it_is(server: Server) -> None:
    """It was asked before anybody listened."""
    port = free_port()
    with subprocess.Popen(
        [SYSTEMD / "orchestrator-ready.sh", "localhost", str(port)], env=environment()
    ) as waiting:
        time.sleep(0.5)
        here = {"REDIS_URL": server.url, "GPU_BROKER_POOL": "deploy-late"}
        with Broker("--port", str(port), **GRANTING, **here):
            assert waiting.wait(15) == 0


def test_enable_all_starts_the_orchestrator_first(
    systemctl: Systemctl, broker: Broker, tmp_path: Path
) -> None:
    """Then, once it is ready, the agents that were named, or those that are here."""
    settings = ports(gpu_orchestrator=broker.port)
    assert call("enable_all.sh", path=tmp_path, **settings).returncode == 0
    assert systemctl.enabled == ["gpu_orchestrator", "analyst", "scout", "critic"]
    (tmp_path / "calls").unlink()
    assert call("enable_all.sh", "scout", path=tmp_path, **settings).returncode == 0
    assert systemctl.enabled == ["gpu_orchestrator", "scout"]


def test_enable_all_starts_nothing_after_a_gate_that_failed(
    systemctl: Systemctl, tmp_path: Path
) -> None:
    """Not ready in time, or the unit did not start."""
    with unready() as broker:
        settings = ports(gpu_orchestrator=broker.port)
        done = call("enable_all.sh", path=tmp_path, TIMEOUT="1", **settings)
    assert done.returncode == 1
    assert "no agent was started" in done.stderr
    assert systemctl.enabled == ["gpu_orchestrator"]
    systemctl.breaks("gpu_orchestrator")
    done = call("enable_all.sh", path=tmp_path, TIMEOUT="1", **ports())
    assert done.returncode == 1
    assert "journalctl -u justnews@gpu_orchestrator" in done.stderr


def test_enable_all_dry_run_starts_nothing(systemctl: Systemctl, tmp_path: Path) -> None:
    """It prints what it would do; a name that is none is refused before anything is done."""
    done = call("enable_all.sh", "--dry-run", "analyst", path=tmp_path)
    assert done.returncode == 0
    assert "systemctl enable --now justnews@analyst" in done.stdout
    assert call("enable_all.sh", "analist", path=tmp_path).returncode == 2
    assert systemctl.enabled == []


@pytest.mark.parametrize(
    ("states", "code", "verdict"),
    [
        ({"gpu_orchestrator": "active"}, 0, "healthy"),
        ({"gpu_orchestrator": "inactive"}, 2, "degraded"),
        ({"gpu_orchestrator": "unknown"}, 0, "healthy"),
    ],
)
def test_health_of_a_broker_that_is_ready(
    systemctl: Systemctl, broker: Broker, tmp_path: Path, states: dict[str, str], code: int,
    verdict: str,
) -> None:  # fmt: skip
    """Also as JSON; where there is no systemd the unit does not count."""
    for agent, state in states.items():
        systemctl.sets(agent, state)
    settings = ports(gpu_orchestrator=broker.port)
    done = call("health_check.sh", "gpu_orchestrator", path=tmp_path, **settings)
    assert (done.returncode, done.stdout.split()[-1]) == (code, verdict)
    done = call("health_check.sh", "-o", "json", "gpu_orchestrator", path=tmp_path, **settings)
    said = json.loads(done.stdout)
    assert (done.returncode, said["exit_code"], said["schema"]) == (code, code, 1)
    assert said["agents"][0] == {
        "agent": "gpu_orchestrator",
        "unit": states["gpu_orchestrator"].replace("unknown", "-"),
        "port": broker.port,
        "listens": True,
        "health": 200,
        "ready": 200,
        "verdict": verdict,
    }


def test_health_of_one_that_is_down_is_failed(
    systemctl: Systemctl, broker: Broker, tmp_path: Path
) -> None:
    """1, whatever the others are."""
    systemctl.sets("gpu_orchestrator", "active")
    done = call("health_check.sh", path=tmp_path, **ports(gpu_orchestrator=broker.port))
    assert done.returncode == 1
    verdicts = {line.split()[0]: line.split()[-1] for line in done.stdout.splitlines()[1:]}
    assert verdicts == {
        "gpu_orchestrator": "healthy", "analyst": "failed", "scout": "failed", "critic": "failed",
    }  # fmt: skip


def test_health_of_a_broker_that_is_not_ready_is_degraded(
    systemctl: Systemctl, tmp_path: Path
) -> None:
    """Alive, unit active, /ready 503."""
    systemctl.sets("gpu_orchestrator", "active")
    with unready() as broker:
        settings = ports(gpu_orchestrator=broker.port)
        done = call("health_check.sh", "gpu_orchestrator", path=tmp_path, **settings)
    assert (done.returncode, done.stdout.split()[-2:]) == (2, ["503", "degraded"])


@pytest.mark.parametrize("script", sorted(path.name for path in SYSTEMD.glob("*[!b].sh")))
def test_script_explains_itself(script: str) -> None:
    """--help says how to call it."""
    done = call(script, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(script)


def test_start_script_becomes_the_agent(tmp_path: Path) -> None:
    """The orchestrator and an agent, by name, on their ports, in the process that was started."""
    settings = ports() | {
        "GPU_BROKER_STATE_DIR": str(tmp_path / "state"),
        "GPU_BROKER_DEVICES": "sim:1x1000",
        "JUSTNEWS_VENV": str(Path(sys.executable).parents[1]),
    }
    script = SYSTEMD / "justnews-start-agent.sh"
    started = {
        name: subprocess.Popen([script, name], env=environment(**settings))
        for name in ("gpu_orchestrator", "scout")
    }
    try:
        for name in started:
            url = f"http://localhost:{settings[f'{name.upper()}_PORT']}/health"
            said = eventually(lambda url=url: health(url), 20)
            assert said["status"] == "ok"
        assert said["gpu_watchdog"] == "off"
    finally:
        for process in started.values():
            process.terminate()
        codes = [process.wait(15) for process in started.values()]
    assert codes == [0, 0]


def health(url: str) -> dict[str, str] | None:
    with suppress(httpx2.TransportError):
        answer = httpx2.get(url)
        return dict(answer.json()) if answer.status_code == 200 else None
    return None


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [("nobody", 2, "there are: mcp_bus"), ("memory", 1, "another project")],
)
def test_start_script_refuses_what_it_cannot_start(name: str, code: int, said: str) -> None:
    """And says what there is."""
    done = call("justnews-start-agent.sh", name)
    assert done.returncode == code
    assert said in done.stderr


def test_next_step_of_an_installation_is_the_broker_alone(tmp_path: Path) -> None:
    """The example's agents are started by their names, or by none, and not by following a hint."""
    said = call("install.sh", DESTDIR=str(tmp_path)).stdout.splitlines()
    assert [line.split()[-1] for line in said if "enable_all.sh" in line] == ["gpu_orchestrator"]


def test_install_overwrites_no_environment(tmp_path: Path) -> None:
    """Units anew, environment files only where there are none."""
    assert call("install.sh", DESTDIR=str(tmp_path)).returncode == 0
    env = tmp_path / "etc/justnews/gpu_orchestrator.env"
    assert "SAFE_MODE=true" in env.read_text().splitlines()
    env.write_text("SAFE_MODE=false\n")
    unit = tmp_path / "etc/systemd/system/justnews@.service"
    unit.unlink()
    assert call("install.sh", DESTDIR=str(tmp_path)).returncode == 0
    assert env.read_text() == "SAFE_MODE=false\n"
    assert f"ExecStart={SYSTEMD}/justnews-start-agent.sh %i" in unit.read_text()
    assert env.stat().st_mode & 0o007 == 0


def test_scripts_are_clean_for_shellcheck() -> None:
    """Every shell script of the tree."""
    listed = subprocess.check_output(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, text=True
    ).splitlines()
    scripts = [name for name in listed if name.endswith(".sh") or name == ".ci/run"]
    assert len(scripts) >= 7
    shellcheck = Path(sys.executable).parent / "shellcheck"
    done = subprocess.run(
        [shellcheck, "-x", *scripts], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")
