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

TESTS = sorted(path.name for path in (DEPLOY / "prometheus").glob("*.test.yml"))

DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "gpu-broker.json").read_text())

needs_promtool = pytest.mark.skipif(
    not shutil.which("promtool"), reason="promtool is not installed"
)


def named(expression: str) -> set[str]:
    """The families that an expression asks for."""
    names = set(re.findall(r"\bgpu_\w+", expression))
    return {re.sub("_(bucket|sum|count)$", "", name) for name in names}


MIB = 1024 * 1024

QUERIES = [
    query for block in re.findall(r"```promql\n(.*?)```", METRICS, re.DOTALL)
    for query in re.split(r"\n\n", block.strip())
]  # fmt: skip

SERIES = {
    'gpu_broker_usage_gpu_seconds_total{team="nlp",use="busy",instance="a"}': "0+900x1000",
    'gpu_broker_usage_gpu_seconds_total{team="nlp",use="busy",instance="b"}': "0+900x1000",
    'gpu_broker_usage_gpu_seconds_total{team="nlp",use="idle",instance="a"}': "0+300x1000",
    'gpu_broker_usage_gpu_seconds_total{team="nlp",use="unknown",instance="a"}': "0+600x1000",
    'gpu_broker_usage_energy_joules_total{team="nlp",instance="a"}': "0+3600000x1000",
    'gpu_broker_lease_peak_ratio_bucket{le="0.5",instance="a"}': "0+1x1000",
    'gpu_broker_lease_peak_ratio_bucket{le="+Inf",instance="a"}': "0+4x1000",
    **{
        f'{name}{{host="h1",gpu="{gpu}",uuid="GPU-{gpu}",instance="{replica}"{more}}}': f"{n}x1000"
        for replica in "ab" for gpu in "01"
        for name, n, more in (
            ("gpu_broker_device_info", 1, ',name="H100"'),
            ("gpu_broker_device_leases", 1 - int(gpu), ""),
            ("gpu_broker_device_memory_leased_bytes", 30 * MIB * (1 - int(gpu)), ""),
        )
    },
    **{
        f'{name}{{gpu="{gpu}",UUID="GPU-{gpu}",Hostname="h1",exported_pod="{pod}"}}': f"{n}x1000"
        for gpu in "01" for pod in "ab"
        for name, n in (
            ("DCGM_FI_PROF_GR_ENGINE_ACTIVE", 0.5), ("DCGM_FI_DEV_POWER_USAGE", 70),
            ("DCGM_FI_DEV_FB_USED", 10),
        )
    },
}  # fmt: skip
"""Samples of two brokers, and of NVIDIA's exporter with two pods on each GPU, an hour apart."""

ANSWERS = [
    [('{team="nlp"}', 1800 * 168 / 3600)],
    [('{team="nlp"}', 0.25)],
    [("{}", 0.25)],
    [('{team="nlp"}', 168.0)],
    [('{uuid="GPU-0",host="h1",name="H100"}', 0.5)],
    [('{uuid="GPU-0"}', 20.0 * MIB)],
    [("{}", 70.0)],
]  # fmt: skip
"""Answers there to the queries of the page, in their order."""


@needs_promtool
def test_queries_of_the_page_find_what_they_say(tmp_path: Path) -> None:
    """Also those that join with series of NVIDIA's exporter."""
    check(tmp_path, "1h", SERIES, dict(zip(QUERIES, ANSWERS, strict=True)))


def check(folder: Path, every: str, series: dict[str, str], asked: dict[str, Any]) -> None:
    """Have promtool hold the answers to some queries, at the 500th sample of these series."""
    file = folder / "queries.test.yml"
    tests = [
        {
            "expr": query, "eval_time": every.replace("1", "500"),
            "exp_samples": [{"labels": labels, "value": value} for labels, value in answer],
        }
        for query, answer in asked.items()
    ]  # fmt: skip
    given = [{"series": name, "values": values} for name, values in series.items()]
    test = {"interval": every, "input_series": given, "promql_expr_test": tests}
    file.write_text(json.dumps({"evaluation_interval": every, "tests": [test]}))
    done = subprocess.run(
        ["promtool", "test", "rules", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_panel_of_holds_counts_leases_of_every_end(tmp_path: Path) -> None:
    """Half of the leases are released in a second and half expire in an hour, at two brokers."""
    (panel,) = (each for each in DASHBOARD["panels"] if each["title"] == "How long leases are held")
    within_a_second = {"released": 10, "expired": 0}
    series = {
        f'gpu_broker_hold_seconds_bucket{{reason="{reason}",le="{le}",instance="{replica}"}}':
        f"0+{n if le == '1' else 10}x1000"
        for reason, n in within_a_second.items()
        for le in ("1", "3601", "+Inf") for replica in "ab"
    }  # fmt: skip
    median, most = (target["expr"] for target in panel["targets"])
    check(tmp_path, "1m", series, {median: [("{}", 1.0)], most: [("{}", 1 + 0.9 * 3600)]})


@needs_promtool
def test_rules_are_well_formed_and_their_tests_pass() -> None:
    """Each alert fires when it should, and not before."""
    for command in (["check", "rules", "rules.yml"], ["test", "rules", *TESTS]):
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
    tests = "".join((DEPLOY / "prometheus" / name).read_text() for name in TESTS)
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
