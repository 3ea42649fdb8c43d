"""The documented "Fresh Start + Mini E2E Procedure", walked with real processes.

Starts the orchestrator and the agents with the start script that the systemd units run, on free
ports and with a store of their own; runs the demonstrations, and the mini pipeline with SAFE_MODE
on, off, and with the orchestrator killed in the middle; then fills the table of the
procedure's criteria from what was seen. Exit code 0 when all are met. Takes some 15 seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demo.criteria import CRITERIA, Seen, as_table
from demo.cycle import ACTIVE
from demo.processes import ROOT, SIMULATED, free_port, process
from demo.results import add_folder, write
from demo.web import Silent, ask, metrics, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

SYSTEMD = ROOT / "deploy" / "systemd"

AGENTS = ("analyst", "scout", "critic")

PAUSE_S = 0.15
"""The Analyst's rest after an article: time in which to look, and to pull the plug."""

LEASED_S = 20.0
"""Within which the pipeline's first batch has its GPU."""

OURS = (
    "safe_mode_*",
    "metrics_snapshot.*",
    "analyst_decision_flip.json",
    "pipeline_*",
    "mcp_*",
    "e2e_*",
)


class Walk:
    """One walk through the procedure.

    Args:
        results: the folder for what is found.
        work: a folder for the environment file, the store and the logs.
    """

    def __init__(self, results: Path, work: Path) -> None:
        self.results, self.work = results, work
        ports = {name: free_port() for name in ("gpu_orchestrator", *AGENTS)}
        self.env = {f"{name.upper()}_PORT": str(port) for name, port in ports.items()}
        self.urls = {name: f"http://localhost:{port}" for name, port in ports.items()}
        self.orchestrator = self.urls["gpu_orchestrator"]
        self.env |= {
            "JUSTNEWS_VENV": sys.prefix,
            "GPU_BROKER_STATE_DIR": str(work / "store"),
            "GPU_BROKER_DEVICES": os.environ.get("GPU_BROKER_DEVICES", SIMULATED),
            "REDIS_URL": "",
        }
        self.settings = work / "gpu_orchestrator.env"
        self.seen = Seen()
        self._steps = 0

    def step(self, what: str) -> None:
        """Say what comes next."""
        self._steps += 1
        print(f"[{self._steps:2}] {what}", flush=True)

    def walk(self) -> None:
        """All of it; what is seen goes to `seen`.

        Raises:
            Silent: something that was started does not serve.
        """
        self.step("clear what an earlier walk left")
        for pattern in OURS:
            for path in self.results.glob(pattern):
                path.unlink()
        self.step("copy the environment example: SAFE_MODE=true")
        shutil.copy(SYSTEMD / "examples" / "gpu_orchestrator.env.example", self.settings)
        self.seen.unit = unit_is_well_formed()
        with ExitStack() as agents:
            with self.started("gpu_orchestrator"):
                self.in_safe_mode(agents)
            self.step("SAFE_MODE=false in the environment file, and a restart")
            self.edit("SAFE_MODE", "false")
            with self.started("gpu_orchestrator") as broker:
                self.with_gpus()
                self.without_orchestrator(broker)
            self.step("the orchestrator is back: the Analyst leases again, and nothing leaked")
            with self.started("gpu_orchestrator"):
                self.gate()
                self.seen.again_run = self.pipeline("pipeline_again.json")
                self.seen.left = self.held()

    def in_safe_mode(self, agents: ExitStack) -> None:
        """Start the orchestrator alone, then the agents, which are left running."""
        seen = self.seen
        self.step("the orchestrator alone: /ready, /health, the health check")
        self.gate()
        seen.health = ask(f"{self.orchestrator}/health").status
        self.step("run_safe_mode_demo.py: the lease is denied")
        seen.safe_demo = self.script("run_safe_mode_demo.py", "--url", self.orchestrator)
        seen.safe_cycle = self.read("safe_mode_cycle_on.json")
        seen.gpu_info = ask(f"{self.orchestrator}/gpu/info").body
        self.step("the agents, and the pipeline with SAFE_MODE on")
        for name in AGENTS:
            agents.enter_context(self.started(name))
            wait_for(f"{self.urls[name]}/ready")
            seen.watchdogs[name] = ask(f"{self.urls[name]}/health").body["gpu_watchdog"]
        seen.safe_run = self.pipeline("pipeline_safe_mode.json")

    def with_gpus(self) -> None:
        """SAFE_MODE is off: the demonstrations, and who holds what in the pipeline."""
        seen = self.seen
        self.gate()
        ask(f"{self.urls['analyst']}/decision", {})
        self.step("run_safe_mode_demo.py, the metrics snapshot, the decision flip")
        seen.open_demo = self.script("run_safe_mode_demo.py", "--url", self.orchestrator)
        seen.open_cycle = self.read("safe_mode_cycle_off.json")
        seen.snapshot = self.script("generate_orchestrator_metrics_snapshot.py")
        output = str(self.results / "analyst_decision_flip.json")
        seen.flip = self.script("mini_orchestrator_analyst_flip.py", "--output", output)
        self.step("e2e_orchestrator_validation.py and e2e_orchestrator_analyst_run.py")
        urls = ("--orchestrator", self.orchestrator, "--analyst", self.urls["analyst"])
        output = str(self.results / "e2e_orchestrator_validation.json")
        more = ("--output", output, "--sample-interval", "0.2")
        seen.validation = self.script("e2e_orchestrator_validation.py", *urls, *more)
        seen.whole_run = self.script("e2e_orchestrator_analyst_run.py", *urls, "--require-gpu")
        self.step("an agent without a model leases over MCP, by stdio and by HTTP")
        output = str(self.results / "mcp_agent.json")
        ask(f"{self.orchestrator}/policy", {"reclaim_after_s": 1, "preempt_grace_s": 30})
        self.script("agents/mcp_agent.py", "--url", self.orchestrator, "--output", output)
        seen.mcp = self.read("mcp_agent.json")
        self.step("the pipeline with SAFE_MODE off: who holds what, all the while")
        with self.watched() as seen.holders:
            seen.open_run = self.pipeline("pipeline_gpu.json")
        seen.active_after = metrics(self.orchestrator)[ACTIVE]

    def without_orchestrator(self, broker: subprocess.Popen) -> None:
        """Kill the orchestrator in the middle of the pipeline."""
        self.step("the pipeline again; the orchestrator is killed in the middle of it")
        killer = threading.Thread(target=self._kill_when_leased, args=(broker,))
        killer.start()
        self.seen.killed_run = self.pipeline("pipeline_orchestrator_killed.json")
        killer.join()

    def _kill_when_leased(self, broker: subprocess.Popen) -> None:
        """Wait for the first batch's GPU; without one in a while there is nothing to wait for."""
        until = time.monotonic() + LEASED_S
        while time.monotonic() < until and not metrics(self.orchestrator)[ACTIVE]:
            time.sleep(PAUSE_S / 10)
        broker.kill()

    @contextmanager
    def started(self, name: str) -> Iterator[subprocess.Popen]:
        """Start an agent by the script that its unit runs."""
        settings = dict(re.findall(r"^(\w+)=(.*)$", self.settings.read_text(), re.MULTILINE))
        options = ["--pause", str(PAUSE_S)] if name == "analyst" else []
        command = [str(SYSTEMD / "justnews-start-agent.sh"), name, *options]
        env = self.env | (settings if name == "gpu_orchestrator" else {})
        with process(command, env, self.work / f"{name}.log") as running:
            yield running

    def gate(self) -> None:
        """Wait for the orchestrator as enable_all.sh does, and run the health check.

        Raises:
            Silent: it is not ready in time, or not healthy.
        """
        for command in (["orchestrator-ready.sh"], ["health_check.sh", "gpu_orchestrator"]):
            done = self.call([str(SYSTEMD / command[0]), *command[1:]])
            if done.returncode:
                raise Silent(f"{command[0]} ended with {done.returncode}: {done.stderr}")

    def script(self, name: str, *args: str) -> int:
        """Return the exit code of one of the demonstrations."""
        takes_folder = name in {
            "run_safe_mode_demo.py",
            "generate_orchestrator_metrics_snapshot.py",
        }
        folder = ["--output-dir", str(self.results)] if takes_folder else []
        done = self.call([sys.executable, str(ROOT / "scripts" / name), *args, *folder])
        for line in (done.stdout + done.stderr).splitlines():
            print(f"       {line}")
        return done.returncode

    def pipeline(self, name: str) -> dict[str, Any]:
        """Return the report of a run of the mini pipeline."""
        urls = [part for x in AGENTS for part in (f"--{x}", self.urls[x])]
        output = str(self.results / name)
        script = str(ROOT / "scripts" / "agents" / "pipeline.py")
        done = self.call([sys.executable, script, *urls, "--articles", "8", "--output", output])
        for line in done.stderr.splitlines():
            print(f"       {line}")
        return self.read(name) | {"exit_code": done.returncode}

    @contextmanager
    def watched(self) -> Iterator[set[str]]:
        """Yield the agents that are seen to hold a GPU while the block lasts."""
        holders: set[str] = set()
        over = threading.Event()

        def look() -> None:
            while not over.wait(0.05):
                holders.update(x["agent"] for x in self.held().values() if x["gpu"] != "cpu")

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield holders
        finally:
            over.set()
            thread.join()

    def held(self) -> dict[str, Any]:
        """Return every lease that lives."""
        found: dict[str, Any] = ask(f"{self.orchestrator}/allocations").body["allocations"]
        return found

    def edit(self, name: str, value: str) -> None:
        """Set a variable in the environment file."""
        text = self.settings.read_text()
        self.settings.write_text(re.sub(rf"(?m)^{name}=.*$", f"{name}={value}", text))

    def call(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        """Return one program to its end."""
        env = {**os.environ, **self.env}
        return subprocess.run(
            command, env=env, capture_output=True, text=True, timeout=120, check=False
        )

    def read(self, name: str) -> dict[str, Any]:
        """Return a file of the results; empty when it is not there."""
        path = self.results / name
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return found


def unit_is_well_formed() -> bool | None:
    """Return systemd-analyze's verdict on the unit; None where it is not installed."""
    if not shutil.which("systemd-analyze"):
        return None
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "DESTDIR": folder}
        subprocess.run([SYSTEMD / "install.sh"], env=env, check=True, capture_output=True)
        unit = Path(folder) / "etc/systemd/system/justnews@gpu_orchestrator.service"
        shutil.copy(unit.parent / "justnews@.service", unit)
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, check=False
        )
    return done.returncode == 0 and not done.stderr


def main() -> int:
    """Walk, and write the report; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_folder(parser)
    parser.add_argument("--keep", action="store_true", help="keep the store and the logs")
    asked = parser.parse_args()
    began = time.monotonic()
    work = Path(tempfile.mkdtemp(prefix="gpu-e2e-"))
    walk = Walk(asked.output_dir, work)
    problem = None
    try:
        walk.walk()
    except (Silent, subprocess.SubprocessError) as error:
        problem = str(error)
        print(f"e2e: {problem}", file=sys.stderr)
        for log in sorted(work.glob("*.log")):
            print(f"--- {log.name}\n{log.read_text()[-2000:]}", file=sys.stderr)
    finally:
        if asked.keep:
            print(f"kept: {work}")
        else:
            shutil.rmtree(work, ignore_errors=True)
    verdicts = [criterion.judge(walk.seen) for criterion in CRITERIA]
    table = as_table(verdicts)
    print(f"\n{table}\n{time.monotonic() - began:.0f} s")
    write(
        asked.output_dir / "e2e_report.json",
        {"criteria": [verdict.as_json() for verdict in verdicts], "problem": problem},
    )
    (asked.output_dir / "e2e_report.md").write_text(f"# End to end\n\n{table}\n")
    return 0 if problem is None and all(verdict.met for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
