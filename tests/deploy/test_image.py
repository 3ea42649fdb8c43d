"""The image and the compose file of one host: each step that needs no engine is run."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from broker.cli import COMMANDS
from broker.maintenance.advisories import advisory
from tests.api.brokers import environment, eventually
from tests.deploy.variables import KNOWN
from tests.servers import free_port

ROOT = Path(__file__).parents[2]

FOLDER = ROOT / "deploy" / "compose"

IMAGE = (ROOT / "Dockerfile").read_text()

PINNED = re.compile(r"[\w./-]+:v?\d+\.\d+\.\d+[\w.-]*")

ENGINE_OPTIONS = {"image", "build", "command", "ports", "environment", "volumes", "depends_on",
                  "healthcheck", "restart", "secrets"}  # fmt: skip


def instructions(name: str) -> list[str]:
    """The instructions of a kind, each in one line."""
    joined = re.sub(r"\\\n\s*", "", IMAGE)
    return re.findall(rf"^{name} (.*)$", joined, re.MULTILINE)


def compose(name: str = "compose.yaml") -> dict[str, Any]:
    return dict(yaml.safe_load((FOLDER / name).read_text()))


def healthcheck() -> list[str]:
    (line,) = instructions("HEALTHCHECK")
    words: list[str] = json.loads(line.partition("CMD ")[2])
    return words


def test_image_is_pinned_and_runs_as_nobody_of_note() -> None:
    """No shell stands between the engine's signals and the broker, and no right of root is left."""
    for base in instructions("FROM"):
        assert PINNED.fullmatch(base.partition(" ")[0])
    assert instructions("USER") == ["10001:10001"]
    assert json.loads(instructions("ENTRYPOINT")[0]) == ["gpu-broker"]
    assert json.loads(instructions("CMD")[0])[0] in COMMANDS
    assert all("--only-binary :all:" in run or "--no-index" in run
               for run in instructions("RUN") if "pip install" in run)  # fmt: skip


def test_linter_has_nothing_to_say() -> None:
    """hadolint's rules, with none left out."""
    done = subprocess.run(
        [Path(sys.executable).with_name("hadolint"), "Dockerfile"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_context_has_what_the_image_copies() -> None:
    """.dockerignore leaves out all but what a wheel is built from."""
    allowed = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    assert "requirements-run.lock" in allowed
    for name in allowed:
        assert (ROOT / name).exists(), name


@pytest.mark.timeout(600)
def test_steps_of_the_image_make_a_broker_that_is_healthy(tmp_path: Path) -> None:
    """Its wheels in a new environment, its entrypoint, its health check, and its end by SIGTERM."""
    source, target = tmp_path / "src", tmp_path / "gpu-broker"
    source.mkdir()
    for name in re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    for step in [run for run in instructions("RUN") if "pip install" in run]:
        words = step.replace("/opt/gpu-broker", str(target)).replace("/src", str(source))
        words = words.replace("python -m venv", f"{sys.executable} -m venv")
        done = subprocess.run(["sh", "-ec", words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
    port = free_port()
    env = environment(
        GPU_BROKER_STATE_DIR=str(tmp_path / "state"), GPU_ORCHESTRATOR_PORT=str(port),
        GPU_BROKER_DEVICES="sim:1x1000", GPU_BROKER_HOSTNAME="h1", SAFE_MODE="false",
        REDIS_URL="",
    )  # fmt: skip
    env["PATH"] = f"{target}/bin:{env['PATH']}"
    check = [str(target / "bin" / "python"), *healthcheck()[1:]]

    def health() -> int:
        return subprocess.run(check, env=env, capture_output=True, check=False).returncode

    assert health() == 1
    entry, command = (json.loads(instructions(name)[0]) for name in ("ENTRYPOINT", "CMD"))
    command = [word.replace("0.0.0.0", "127.0.0.1") for word in command]  # beyond needs keys
    broker = subprocess.Popen(
        [str(target / "bin" / entry[0]), *command], env=env, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        eventually(lambda: health() == 0, 60, 0.2)
        broker.terminate()
        assert broker.wait(60) == 0
    finally:
        broker.kill()
        broker.wait()


def test_compose_file_names_what_there_is() -> None:
    """Images are pinned, files exist, services wait for healthy ones, nothing is published wide."""
    whole = compose()
    services = whole["services"]
    for service in services.values():
        assert set(service) <= ENGINE_OPTIONS
        assert PINNED.fullmatch(service["image"])
        for name, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}
            assert "healthcheck" in services[name] or "build" in services[name]
        for volume in service["volumes"]:
            place = volume.partition(":")[0]
            assert (FOLDER / place).exists() if place[0] == "." else place in whole["volumes"]
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
        assert set(service.get("secrets", ())) <= whole["secrets"].keys()
    assert services["broker"]["environment"].keys() <= KNOWN
    assert (ROOT / "Dockerfile").samefile(FOLDER / services["broker"]["build"] / "Dockerfile")
    version = services["redis"]["image"].partition(":")[2]
    assert advisory({"redis_version": version}) is None
    nvidia = compose("compose.nvidia.yaml")["services"]
    assert nvidia.keys() <= services.keys()
    assert nvidia["broker"]["environment"].keys() - {"NVIDIA_DRIVER_CAPABILITIES"} <= KNOWN


def test_no_secret_stands_in_a_file() -> None:
    """Passwords and keys are files that git does not take."""
    for secret in compose()["secrets"].values():
        assert secret["file"].startswith("./secrets/")
    done = subprocess.run(
        ["git", "check-ignore", "deploy/compose/secrets/grafana_password"], cwd=ROOT,
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode in {0, 128}, "128: no checkout of git"
    assert not re.search(r"(?i)password: |[_-]key: \w", (FOLDER / "compose.yaml").read_text())


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")
def test_prometheus_takes_its_configuration(tmp_path: Path) -> None:
    """With the rules and the key where the compose file puts them; the job is that of the rules."""
    text = (FOLDER / "prometheus.yml").read_text()
    (tmp_path / "key").write_text("k")
    shutil.copy(ROOT / "deploy/prometheus/rules.yml", tmp_path)
    prometheus = compose()["services"]["prometheus"]
    assert "/etc/prometheus/rules.yml" in "".join(prometheus["volumes"])
    text = text.replace("/etc/prometheus/rules.yml", str(tmp_path / "rules.yml"))
    text = text.replace("/run/secrets/prometheus_key", str(tmp_path / "key"))
    (tmp_path / "prometheus.yml").write_text(text)
    done = subprocess.run(
        ["promtool", "check", "config", str(tmp_path / "prometheus.yml")], capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "job_name: gpu-broker\n" in text


def test_grafana_is_given_our_dashboard_and_its_data_source() -> None:
    """The provider's folder is where the dashboard is mounted, and its source is of its type."""
    service = compose()["services"]["grafana"]
    mounted = dict(volume.split(":")[:2] for volume in service["volumes"])
    (provider,) = yaml.safe_load((FOLDER / "grafana/dashboards/gpu-broker.yml").read_text())[
        "providers"
    ]
    assert mounted["../grafana"] == provider["options"]["path"]
    home = Path(service["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert str(home.parent) == provider["options"]["path"]
    dashboard = json.loads((ROOT / "deploy/grafana" / home.name).read_text())
    (wanted,) = [each for each in dashboard["templating"]["list"] if each["type"] == "datasource"]
    (source,) = yaml.safe_load((FOLDER / "grafana/datasources/prometheus.yml").read_text())[
        "datasources"
    ]
    assert (source["type"], source["isDefault"]) == (wanted["query"], True)
    assert source["url"] == "http://prometheus:9090"


def test_redis_takes_the_command_of_the_compose_file(tmp_path: Path) -> None:
    """The real server, with deploy/redis's settings and the words behind them."""
    if not shutil.which("redis-server"):
        pytest.skip("redis-server is not installed")
    service = compose()["services"]["redis"]
    words = [word.replace("/etc/redis", str(ROOT / "deploy/redis")) for word in service["command"]]
    words = [word.replace("/data", str(tmp_path)) for word in words]
    port = str(free_port())
    words = [word.replace("*", "127.0.0.1") for word in words]
    server = subprocess.Popen([*words, "--port", port], stdout=subprocess.DEVNULL)
    check = [*service["healthcheck"]["test"][1:], "-p", port]
    check = [check[0], "-p", port, *shlex.split(" ".join(check[1:-2]))]
    try:
        eventually(
            lambda: b"PONG" in subprocess.run(check, capture_output=True, check=False).stdout, 30
        )
    finally:
        server.terminate()
        server.wait()
