"""The documented scripts, run as a person runs them: their files, words and exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.agents.processes import Agent
from tests.api.brokers import GRANTING, SIM, Broker, environment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers import Server

SCRIPTS = Path(__file__).parents[2] / "scripts"

NOBODY = "http://127.0.0.1:1"


def script(name: str, *args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SCRIPTS / name, *args],
        cwd=cwd, env=environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@contextmanager
def answering(answers: dict[str, Any]) -> Iterator[str]:
    """A server that answers these paths with 200 and JSON, and all others with 404."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = json.dumps(answers.get(self.path, {})).encode()
            self.send_response(200 if self.path in answers else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815 - the base class's name

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def broker(server: Server) -> Iterator[Broker]:
    with Broker(**GRANTING, REDIS_URL=server.url, GPU_BROKER_POOL="demos") as broker:
        yield broker.wait()


@pytest.fixture(scope="module")
def analyst(broker: Broker) -> Iterator[str]:
    url = f"http://127.0.0.1:{broker.port}"
    with Agent("analyst", "--memory", "100", GPU_ORCHESTRATOR_URL=url) as agent:
        yield agent.url


@pytest.fixture
def orchestrator(broker: Broker) -> str:
    return f"http://127.0.0.1:{broker.port}"


def test_safe_mode_demo_and_its_snapshot(tmp_path: Path) -> None:
    """Denied, then granted, each in a fresh broker; the snapshot shows active_leases 0 and 1."""
    done = script("run_safe_mode_demo.py", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    found = tmp_path / "orchestrator_demo_results"
    on, off = (json.loads((found / f"safe_mode_cycle_{x}.json").read_text()) for x in ("on", "off"))
    assert (on["safe_mode"], on["lease"]["granted"], on["lease"]["note"]) == (
        True, False, "SAFE_MODE",
    )  # fmt: skip
    assert "gpu" not in on["lease"]
    assert (off["safe_mode"], off["lease"]["granted"], off["lease"]["gpu"]) == (False, True, 0)
    assert off["metrics"]["during"]["gpu_orchestrator_active_leases"] == 1
    lines = (found / "safe_mode_toggle.jsonl").read_text().splitlines()
    assert [json.loads(line)["safe_mode"] for line in lines] == [True, False]
    assert script("generate_orchestrator_metrics_snapshot.py", cwd=tmp_path).returncode == 0
    snapshot = json.loads((found / "metrics_snapshot.json").read_text())
    assert snapshot["difference"]["gpu_orchestrator_active_leases"] == 1
    assert len(snapshot["observations"]) == 3
    text = (found / "metrics_snapshot.txt").read_text()
    assert "gpu_orchestrator_active_leases" in text


def test_safe_mode_demo_of_a_running_orchestrator(orchestrator: str, tmp_path: Path) -> None:
    """One cycle, in the mode that it has; the folder is the caller's choice."""
    done = script("run_safe_mode_demo.py", "--url", orchestrator, "--output-dir", "x", cwd=tmp_path)
    assert done.returncode == 1, "the device has 1000 MiB and the demo asks for 1024"
    assert "WRONG: no GPU was granted" in done.stderr
    assert (tmp_path / "x" / "safe_mode_cycle_off.json").exists()
    done = script("run_safe_mode_demo.py", "--url", NOBODY, cwd=tmp_path)
    assert done.returncode == 1
    assert NOBODY in done.stderr


def test_snapshot_without_its_input_says_what_to_run(tmp_path: Path) -> None:
    """It names the file, and the script that writes it."""
    done = script("generate_orchestrator_metrics_snapshot.py", cwd=tmp_path)
    assert done.returncode == 1
    assert "safe_mode_cycle_on.json" in done.stderr
    assert "run_safe_mode_demo.py" in done.stderr


def test_flip_is_the_clients_decision(tmp_path: Path) -> None:
    """CPU with SAFE_MODE on, GPU with it off."""
    done = script("mini_orchestrator_analyst_flip.py", "--output", "flip.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "flip.json").read_text())
    assert found["flipped"] is True
    assert found["safe_mode_on"] == {
        "use_gpu": False, "safe_mode": True, "gpu_available": True, "policy_fallback": False,
    }  # fmt: skip
    assert found["safe_mode_off"]["use_gpu"] is True


def test_smoke_test(orchestrator: str, analyst: str, tmp_path: Path) -> None:
    """With processes of its own, and with those that run; against none it fails."""
    done = script("orchestrator_analyst_smoke_test.py", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    urls = ("--orchestrator", orchestrator, "--analyst", analyst)
    done = script("orchestrator_analyst_smoke_test.py", *urls, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [
        ["ok", "decision"], ["ok", "lease"], ["ok", "work"], ["ok", "release"],
    ]  # fmt: skip
    done = script("orchestrator_analyst_smoke_test.py", *urls[2:], "--orchestrator", NOBODY,
                  cwd=tmp_path)  # fmt: skip
    assert done.returncode == 1


def test_smoke_test_in_safe_mode_fails(server: Server, tmp_path: Path) -> None:
    """No GPU, no success."""
    settings = SIM | {"SAFE_MODE": "true", "REDIS_URL": server.url, "GPU_BROKER_POOL": "smoke-safe"}
    with Broker(**settings) as broker:
        url = f"http://127.0.0.1:{broker.wait('/health').port}"
        with Agent("analyst", GPU_ORCHESTRATOR_URL=url) as agent:
            urls = ("--orchestrator", url, "--analyst", agent.url)
            done = script("orchestrator_analyst_smoke_test.py", *urls, cwd=tmp_path)
    assert done.returncode == 1
    assert "FAIL decision" in done.stdout


def validation(cwd: Path, orchestrator: str, analyst: str) -> tuple[int, dict[str, Any]]:
    done = script(
        "e2e_orchestrator_validation.py", "--orchestrator", orchestrator, "--analyst", analyst,
        "--output", "out.json", "--sample-interval", "0.05", "--samples", "3", cwd=cwd,
    )  # fmt: skip
    return done.returncode, json.loads((cwd / "out.json").read_text())


def test_validation_takes_samples(orchestrator: str, analyst: str, tmp_path: Path) -> None:
    """It takes the number it was told, each with the decision beside its reasons."""
    code, found = validation(tmp_path, orchestrator, analyst)
    assert (code, found["exit_code"], found["problem"], len(found["samples"])) == (0, 0, None, 3)
    assert found["samples"][0]["decision"]["use_gpu"] is True
    assert found["samples"][0]["gpu_info"]["available"] is True


def test_validation_misses_what_is_not_there(
    orchestrator: str, analyst: str, tmp_path: Path
) -> None:
    """2: nobody, or one endpoint of many."""
    assert validation(tmp_path, NOBODY, analyst)[0] == 2
    assert validation(tmp_path, orchestrator, NOBODY)[0] == 2
    with answering({"/health": {}}) as half:
        code, found = validation(tmp_path, orchestrator, half)
    assert code == 2
    assert found["problem"] == f"missing: {half}/decision"


def test_validation_finds_a_decision_that_nothing_stands_behind(
    orchestrator: str, tmp_path: Path
) -> None:
    """3: use_gpu without gpu_available."""
    decision = {"use_gpu": True, "gpu_available": False, "safe_mode": False}
    with answering({"/health": {}, "/decision": decision}) as liar:
        code, found = validation(tmp_path, orchestrator, liar)
    assert code == 3
    assert "use_gpu without gpu_available" in found["problem"]


DONE = {"results": [{"device": "cpu"}], "reason": "no_capacity"}


@pytest.mark.parametrize(
    ("which", "code", "said"),
    [
        ("orchestrator", 10, "orchestrator"),
        ("analyst", 11, "analyst"),
        ("dashboard", 12, "dashboard"),
    ],
)
def test_run_fails_with_the_code_of_what_does_not_serve(
    orchestrator: str, analyst: str, tmp_path: Path, which: str, code: int, said: str
) -> None:
    """One line that says which, and the code that the document names."""
    urls = {"orchestrator": orchestrator, "analyst": analyst, "dashboard": f"{orchestrator}/health"}
    urls[which] = NOBODY
    args = [part for name, url in urls.items() for part in (f"--{name}", url)]
    done = script("e2e_orchestrator_analyst_run.py", *args, cwd=tmp_path)
    assert done.returncode == code
    assert done.stderr.startswith(said)
    assert len(done.stderr.splitlines()) == 1


def test_run_that_needs_a_gpu(orchestrator: str, analyst: str, tmp_path: Path) -> None:
    """0 with one, 13 without one where it is required, 0 where it is not."""
    name, first = "e2e_orchestrator_analyst_run.py", ("--orchestrator", orchestrator)
    done = script(name, *first, "--analyst", analyst, "--require-gpu", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "all serve; the Analyst worked on the GPU\n")
    with answering({"/health": {}, "/analyze": DONE}) as slow:
        args = (*first, "--analyst", slow)
        done = script(name, *args, "--require-gpu", cwd=tmp_path)
        assert done.returncode == 13
        assert "no_capacity" in done.stderr
        assert script(name, *args, cwd=tmp_path).returncode == 0
