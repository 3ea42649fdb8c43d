"""Scenario files: rewritten, broken, missing, not understood; and the choice of such a source."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from broker.devices import choose
from broker.devices.scenario.moments import scenario_of
from broker.devices.scenario.source import MAX_BYTES, ScriptedSource
from broker.devices.scenario.yaml_nodes import ScenarioError

ROOT = Path(__file__).parents[2]
SCENARIOS = sorted((ROOT / "tests" / "scenarios").glob("*.yaml"))

ONE = "steps: [{devices: [{uuid: GPU-a, total_mb: 24576}]}]"


def test_scripted_file_that_is_rewritten_begins_anew(script):
    """The next sample follows it from its first step, XIDs and all; who is not there is lost."""
    script.write("steps: [{devices: [{uuid: a, total_mb: 1000, xids: [79]}]}]")
    assert script.one().xids == (79,)
    time.sleep(0.2)
    script.write("""
        steps:
          - devices: [{uuid: b, total_mb: 2000, xids: [13]}]
          - {after_s: 0.15, devices: [{uuid: b, used_mb: 7}]}
        """)
    devices = script.devices()
    assert (devices["a"].state, devices["b"].used_mb, devices["b"].xids) == ("lost", 0, (13,))


def test_scripted_file_that_breaks_is_an_error_until_it_is_mended(script):
    """The devices that were known stay, in state error; the reason has the line."""
    script.write(ONE).one()
    sample = script.write("steps:\n  - devices: [{uuid: GPU-a, memory: 5}]\n").source.sample()
    assert sample.source == "scripted"
    assert "line 2" in sample.error
    assert [(d.uuid, d.state, d.reason) for d in sample.devices] == [
        ("GPU-a", "error", sample.error)
    ]
    assert script.source.sample().error == sample.error
    assert script.write(ONE + "\n").one().state == "ok"


def test_scripted_file_that_is_not_there_is_an_error_until_it_is(script):
    """Also one that goes away while it is followed."""
    assert "No such file" in script.source.sample().error
    assert script.write(ONE).one().state == "ok"
    script.path.unlink()
    sample = script.source.sample()
    assert "No such file" in sample.error
    assert sample.devices[0].state == "error"


def test_scripted_path_that_is_no_text_file_is_an_error_and_waits_for_nobody(script, tmp_path):
    """A folder, a pipe without a writer, too much, or no text: one sentence each, at once."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b" " * (MAX_BYTES + 1))
    (tmp_path / "binary").write_bytes(b"steps: \xff")
    for name, why in (("", "no file"), ("pipe", "no file"), ("large", "no file"),
                      ("binary", "no UTF-8")):  # fmt: skip
        sample = ScriptedSource(tmp_path / name).sample()
        assert why in sample.error
        assert sample.devices == ()


DEVICE = "steps: [{devices: [{uuid: a, total_mb: 9, %s}]}]"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "it is empty"),
        ("# nothing\n", "it is empty"),
        ("steps: [\n\n{", "line 3: it is no YAML: "),
        ("steps: \x01", "it is no YAML: "),
        ("a: b: c", "line 1: it is no YAML: "),
        ("---\nsteps: []\n---\nsteps: []\n", "it is no YAML: "),
        ("steps: *nobody", "line 1: it is no YAML: "),
        ("[" * 5000, "it is nested too deeply"),
        ("5", "line 1: a scenario must be a mapping"),
        ("devices: []", "line 1: a scenario has no field 'devices': it may have steps, driver"),
        ("driver_version: 5", "line 1: a scenario needs steps"),
        ("steps: 5", "line 1: steps must be a list"),
        ("steps: []", "line 1: steps must have one at least"),
        ("steps: [[]]", "line 1: a step must be a mapping"),
        ("steps:\n- devices: []\n- devices: []", "line 3: a step must come after the one before"),
        ("steps: [{after_s: 1, devices: []}]", "line 1: a step is the first: its after_s must be"),
        ("steps: [{after_s: soon, devices: []}]", "after_s must be a number"),
        ("steps: [{after_s: .nan, devices: []}]", "after_s must be 0 to 1000000000"),
        ("steps: [{after_s: 0}]", "a step needs devices, or an error"),
        ("steps: [{error: []}]", "error must be text"),
        ("steps: [{devices: {}}]", "devices must be a list"),
        ("steps: [{devices: [GPU-a]}]", "a device must be a mapping"),
        ("steps: [{devices: [{total_mb: 9}]}]", "a device needs a uuid"),
        ("steps: [{devices: [{uuid: 'a b', total_mb: 9}]}]", "a device needs a uuid"),
        ("steps:\n- devices:\n  - uuid: a", "line 3: a device a needs total_mb"),
        ("steps: [{devices: [{uuid: a, total_mb: 9}, {uuid: a}]}]", "a device a is listed twice"),
        (DEVICE % "total_mb: 9", "total_mb is there twice"),
        (DEVICE % "[a]: 9", "a device has no field ''"),
        (DEVICE % "index: null", "index must be a whole number"),
        (DEVICE % "index: true", "index must be a whole number"),
        (DEVICE % "used_mb: 1.5", "used_mb must be a whole number"),
        (DEVICE % "used_mb: -1", "used_mb must be 0 to 16777216"),
        (DEVICE % f"used_mb: {'9' * 5000}", "used_mb cannot be read"),
        (DEVICE % "temperature_c: warm", "temperature_c must be a number"),
        (DEVICE % "temperature_c: [5]", "temperature_c must be a number"),
        (DEVICE % "temperature_c: 2026-13-45", "temperature_c cannot be read"),
        (DEVICE % "mps: 1", "mps must be true or false"),
        (DEVICE % f"name: {'x' * 257}", "name must have at most 256 letters"),
        (DEVICE % "state: away", "state must be one of ok, lost, error, mig"),
        (DEVICE % "parent: b", "a step lists a, but not its parent b"),
        (DEVICE % "hang_s: -1", "hang_s must be 0 to 1000000000"),
        (DEVICE % "xids: 79", "xids must be a list"),
        (DEVICE % "xids: [lost]", "an xid must be a whole number"),
        (DEVICE % "processes: [7]", "a process must be a mapping"),
        (DEVICE % "processes: [{memory_mb: 7}]", "a process needs a pid"),
        (DEVICE % "processes: [{pid: 0}]", "pid must be 1 to 4194304"),
        (DEVICE % "processes: [{pid: me}]", "pid must be a whole number"),
        (DEVICE % "processes: [{pid: '${NOBODY_SET_THIS}'}]", "no process id there"),
        (DEVICE % "processes: [{pid: '${PATH}'}]", "no process id there"),
        (DEVICE % "processes: [{pid: 7, busy_pct: 101}]", "busy_pct must be 0 to 100"),
        (f"steps: [{{devices: [{', '.join(['{}'] * 1025)}]}}]", "more than 1024 entries"),
    ],
)
def test_scripted_file_not_understood_is_told_in_one_sentence(content, why):
    """Whatever the file holds, the error is ours and says what to mend."""
    with pytest.raises(ScenarioError) as caught:
        scenario_of(content)
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_scripted_without_pyyaml_says_how_to_install_it(tmp_path):
    """A start that names a scenario ends there; no other one needs it."""
    (tmp_path / "yaml.py").write_text("raise ImportError('away')\n")
    code = (
        "from broker.devices import DeviceSourceError, choose\n"
        "import sys; assert 'yaml' not in sys.modules\n"
        "try:\n"
        f"    choose('scenario:{SCENARIOS[0]}', enable_nvml=None, safe_mode=False, host='b',"
        " smi_on_path=None)\n"
        "except DeviceSourceError as error:\n"
        "    print(error)\n"
    )
    env = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    said = subprocess.check_output([sys.executable, "-c", code], env=env, text=True)
    assert "pip install 'gpu-lease-broker[broker]'" in said


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_scripted_scenario_of_the_suite_can_be_followed(path, monkeypatch):
    """Each file in tests/scenarios is one, and its names say that it is scripted."""
    monkeypatch.setenv("HOLDER", "1")
    monkeypatch.setenv("SQUATTER", "1")
    scenario = scenario_of(path.read_text())
    names = {device.name for step in scenario.steps for device in step.devices}
    assert names
    assert all(name.startswith("Scripted ") for name in names)


@pytest.mark.parametrize("safe_mode", [True, False])
def test_scripted_is_chosen_also_under_safe_mode(safe_mode):
    """It touches no driver."""
    spec = f"scenario:{SCENARIOS[0]}"
    source = choose(spec, enable_nvml=None, safe_mode=safe_mode, host="b", smi_on_path=None)
    assert (source.name, source.sample().error) == ("scripted", None)
    source.close()
