"""The analyst on a GPU that is not simulated: NVML and torch are stand-ins, the rest is real."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from scripts.agents.sentiment import NumpyEngine
from tests.agents.processes import Analyst, InBackground, articles, broker_at, url_of
from tests.api.brokers import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.api.brokers import Broker
    from tests.servers import Server

FAKES = Path(__file__).parents[1] / "fakes"


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Settings of a broker with eight GPUs of the stand-in for NVML."""
    assert shutil.which("gcc"), "no gcc on PATH: apt-get install gcc libc6-dev"
    folder = tmp_path_factory.mktemp("nvml")
    options = ["-shared", "-fPIC", "-o", str(folder / "libnvidia-ml.so.1")]
    subprocess.run(["gcc", *options, str(FAKES / "nvml" / "nvml.c")], check=True)
    return {
        "GPU_BROKER_DEVICES": "nvml",
        "ENABLE_NVML": "true",
        "LD_LIBRARY_PATH": str(folder),
        "FAKE_NVML_HANG": str(folder / "hang"),
    }


@pytest.fixture(scope="module")
def broker(server: Server, driver: dict[str, str]) -> Iterator[Broker]:
    """A broker that gives leases on them."""
    with broker_at(server, **driver).wait() as broker:
        eventually(lambda: broker.http.get("/gpu/info").json()["available"], 5)
        yield broker


@pytest.fixture
def torch(tmp_path: Path) -> dict[str, str]:
    """Settings of an agent that finds the stand-in for torch, and the file that it writes."""
    return {"PYTHONPATH": str(FAKES / "torch"), "FAKE_TORCH_SAW": str(tmp_path / "saw")}


def test_leased_gpu_is_the_one_that_torch_sees(broker: Broker, torch: dict[str, str]) -> None:
    """One child for a batch, with CUDA_VISIBLE_DEVICES from the lease; it ends with the batch."""
    with Analyst(url_of(broker), **torch) as analyst:
        assert analyst.get("/decision")["use_gpu"] is True
        saw = Path(torch["FAKE_TORCH_SAW"])
        assert not saw.exists()
        answer = analyst.analyze()
        (child,) = saw.read_text().splitlines()
        pid, visible = child.split()
        assert [visible] == answer["lease"]["uuids"]
        assert visible.startswith("GPU-")
        assert int(pid) != analyst.process.pid
        assert not Path(f"/proc/{pid}").exists()
        assert {(x["device"], x["engine"]) for x in answer["results"]} == {("gpu", "torch")}
        texts = [f"{article['title']}. {article['text']}" for article in articles(2)]
        expected = [NumpyEngine().score(text) for text in texts]
        assert [x["sentiment"] for x in answer["results"]] == pytest.approx(expected, abs=1e-4)
        assert broker.allocations() == {}


def test_gpu_that_fails_in_mid_batch_falls_back(broker: Broker, torch: dict[str, str]) -> None:
    """The child is killed, as the driver or the kernel may; the articles left are done."""
    with Analyst(url_of(broker), "--pause", "0.2", **torch) as analyst:
        batch = InBackground(analyst, 6)
        saw = Path(torch["FAKE_TORCH_SAW"])
        eventually(saw.exists, 5)
        eventually(saw.read_text, 5)
        os.kill(int(saw.read_text().split()[0]), signal.SIGKILL)
        answer = batch.end()
        assert len(answer["results"]) == 6
        assert answer["results"][-1]["device"] == "cpu"
        assert answer["reason"] == "child_ended"
        assert broker.allocations() == {}


def test_gpu_without_torch_is_the_cpu(broker: Broker) -> None:
    """A device that is there and cannot be used is not said to be used."""
    with Analyst(url_of(broker)) as analyst:
        answer = analyst.analyze()
        assert {result["device"] for result in answer["results"]} == {"cpu"}
        assert answer["reason"] in {"no_torch", "no_cuda"}
        assert answer["lease"]["on_cpu"] is False


def test_safe_mode_never_starts_torch(
    server: Server, driver: dict[str, str], torch: dict[str, str]
) -> None:
    """Nothing that could touch a driver is imported, whatever is installed."""
    safe = driver | {"SAFE_MODE": "true"}
    with broker_at(server, **safe).wait() as broker, Analyst(url_of(broker), **torch) as analyst:
        assert analyst.devices() == {"cpu"}
        assert not Path(torch["FAKE_TORCH_SAW"]).exists()
