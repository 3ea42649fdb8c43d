"""Alert rules and the dashboard: promtool runs their tests, and what they name exists."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"

MONITORING = (DEPLOY.parent / "docs" / "how-to" / "monitoring.md").read_text()

METRICS = (DEPLOY.parent / "docs" / "reference" / "metrics.md").read_text()

KNOWN = set(re.findall(r"`(gpu_(?:broker|orchestrator)_\w+)`", METRICS))
"""Held against what a broker exports by `tests/unit/test_docs.py`."""

RULES = (DEPLOY / "prometheus" / "rules.yml").read_text()

DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "gpu-broker.json").read_text())

needs_promtool = pytest.mark.skipif(
    not shutil.which("promtool"), reason="promtool is not installed"
)


def named(expression: str) -> set[str]:
    """The families that an expression asks for."""
    names = set(re.findall(r"\bgpu_\w+", expression))
    return {re.sub("_(bucket|sum|count)$", "", name) for name in names}


@needs_promtool
def test_rules_are_well_formed_and_their_tests_pass() -> None:
    """Each alert fires when it should, and not before."""
    for command in (["check", "rules", "rules.yml"], ["test", "rules", "rules.test.yml"]):
        done = subprocess.run(
            ["promtool", *command], cwd=DEPLOY / "prometheus", capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


def test_rules_name_metrics_that_exist_and_have_tests() -> None:
    """A rule on a name that is none would never fire."""
    expressions = re.findall(r"expr: (.*)", RULES)
    assert len(expressions) >= 9
    for expression in expressions:
        assert named(expression) <= KNOWN
        assert named(expression) or "up{" in expression
    tests = (DEPLOY / "prometheus" / "rules.test.yml").read_text()
    for alert in re.findall(r"alert: (\w+)", RULES):
        assert f"alertname: {alert}" in tests


def test_page_lists_every_alert_once() -> None:
    """The operator's page has a row for each rule, and for nothing else."""
    rows = re.findall(r"^\| `(GpuBroker\w+)` \|", MONITORING, re.MULTILINE)
    assert sorted(rows) == sorted(re.findall(r"alert: (\w+)", RULES))


def test_every_family_of_the_rules_is_missed() -> None:
    """A series that is not there fires nothing but the rules that ask for that."""
    asked = dict(re.findall(r"alert: (\w+)\n +expr: (.*)", RULES))
    missing = "absent(gpu_broker_redis_up)", "unless", "up{"
    assert {name for name, expr in asked.items() if any(word in expr for word in missing)} == {
        "GpuBrokerGone", "GpuBrokerReplicaGone", "GpuBrokerPoolUnseen", "GpuBrokerHostForgotten",
        "GpuBrokerDeviceForgotten",
    }  # fmt: skip
    with_a_wait = re.findall(r"expr: (.*)\n +for:", RULES)
    for expression in with_a_wait:  # one scrape that failed must not begin the wait anew
        assert "_over_time(" in expression or expression.startswith(("absent(", "up{"))


def test_dashboard_names_metrics_that_exist() -> None:
    """Every panel asks for something, of the data source that is chosen at import."""
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) >= 15
    for panel in panels:
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["targets"]
        for target in panel["targets"]:
            assert named(target["expr"]), panel["title"]
            assert named(target["expr"]) <= KNOWN, panel["title"]


def test_panels_do_not_overlap() -> None:
    """Each has its own place in the grid of 24 columns."""
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"])
                 for y in range(at["y"], at["y"] + at["h"])}  # fmt: skip
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
