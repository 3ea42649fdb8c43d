"""deploy/three-hosts: its files are ones that the programs understand."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from broker.cli import COMMANDS
from broker.devices.simulated import totals_of
from broker.maintenance.advisories import advisory
from broker.settings import Settings
from tests.api.brokers import PROGRAM, environment
from tests.deploy.variables import KNOWN

if TYPE_CHECKING:
    import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "three-hosts"


def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((FOLDER / "compose.yaml").read_text()))


def environments() -> list[dict[str, str]]:
    """Return the settings of each broker and reporter of the example."""
    found = [
        dict(re.findall(r"^(\w+)=(.*)$", path.read_text(), re.MULTILINE))
        for path in sorted(FOLDER.glob("*.env"))
    ]
    services = compose()["services"].values()
    return found + [service["environment"] for service in services if "environment" in service]


def test_environments_are_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each variable is one that is read, and each value has the form that it must have."""
    assert len(environments()) == 5
    (tmp_path / "keys").touch(mode=0o644)
    for env in environments():
        assert env.keys() <= KNOWN
        with monkeypatch.context() as patch:
            for name, value in env.items():
                patch.setenv(name, str(tmp_path / "keys") if name.endswith("KEYS_FILE") else value)
            settings = Settings()
        assert settings.sdk.hostname == env["GPU_BROKER_HOSTNAME"]
        if settings.devices.startswith("sim:"):
            assert totals_of(settings.devices)


def test_published_port_needs_keys(tmp_path: Path) -> None:
    """Its command with its settings is refused until there is a key, whatever store there is."""
    broker = compose()["services"]["broker"]
    _, *words = shlex.split(broker["command"])
    env = broker["environment"] | {"GPU_BROKER_STATE_DIR": str(tmp_path)}
    done = subprocess.run(
        [PROGRAM, *words], env=environment(**env), capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "gpu-broker keys new" in done.stderr


def test_images_are_pinned_and_without_known_holes() -> None:
    """Each names a whole version, so that tomorrow's is the one of today."""
    services = compose()["services"].values()
    stores = {service["image"] for service in services if "image" in service}
    (builds,) = {
        service["build"]["dockerfile_inline"] for service in services if "build" in service
    }
    bases = re.findall(r"^FROM (\S+)$", builds, re.MULTILINE)
    for image in [*stores, *bases]:
        assert re.search(r":\d+\.\d+\.\d+", image), image
    for image in stores:
        assert advisory({"redis_version": image.partition(":")[2]}) is None


def test_compose_file_names_what_there_is() -> None:
    """Services depend on services, ours run commands of ours, and each URL's hosts are services."""
    services = compose()["services"]
    for service in services.values():
        assert set(service.get("depends_on", ())) <= services.keys()
        program, *words = shlex.split(service["command"]) if "build" in service else ("", "")
        if program:
            assert program == "gpu-broker"
            assert words[0] in COMMANDS
        url = service.get("environment", {}).get("REDIS_URL", "")
        assert set(re.findall(r"[\w-]+(?=[,/]\w)", url.partition("//")[2])) <= services.keys()
    assert services["broker"]["ports"] == ["127.0.0.1:8014:8014"]
