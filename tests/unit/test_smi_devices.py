"""GPUs through nvidia-smi, a program that prints what real ones print."""

from __future__ import annotations

import re
import subprocess
import threading
import time
from pathlib import Path

import pytest

from broker.devices.sample import Sample
from broker.devices.smi.program import find_smi
from broker.devices.smi.source import SmiSource
from broker.devices.unified import SILENT, Unified, host_memory
from tests.api.brokers import eventually

HEADER = (
    "index, uuid, name, driver_version, memory.total [MiB], memory.used [MiB], "
    "utilization.gpu [%], temperature.gpu, power.draw [W]"
)


def printed(*lines, status=0):
    quoted = "\n".join(lines)
    return f"cat <<'END'\n{quoted}\nEND\nexit {status}"


def test_smi_commas_in_numbers_are_no_other_columns(smi):
    """Such a row is longer, as one with a comma in its name: what is used would be all there is."""
    sample = smi(
        printed(
            HEADER,
            "0, GPU-a, NVIDIA L4, 580.95, 23034, 16000, 0, 40, 16,25",
            "1, GPU-b, NVIDIA L4, 580.95, 23034, 1, 0, 40, 16",
        )
    ).sample()
    assert [(row.uuid, row.total_mb) for row in sample.devices] == [("GPU-b", 23034)]
    assert "GPU-a" in sample.error


def test_smi_healthy_is_read_by_column_name(smi):
    """Columns may come in any order, and a comma in a name stays in the name."""
    sample = smi(
        printed(
            "power.draw [W], name, index, uuid, memory.total [MiB], memory.used [MiB], "
            "utilization.gpu [%], temperature.gpu, driver_version, new.field",
            "61.25, NVIDIA A, B, 0, GPU-a, 24576, 1, 3, 35, 550.54, 1",
        )
    ).sample()
    assert (sample.source, sample.error, sample.driver_version) == ("smi", None, "550.54")
    [device] = sample.devices
    assert (device.uuid, device.index, device.name) == ("GPU-a", 0, "NVIDIA A, B")
    assert device.model == "NVIDIA A B"
    assert (device.total_mb, device.used_mb, device.system_mb) == (24576, 1, 738)
    assert (device.utilization_gpu_pct, device.temperature_c) == (3.0, 35.0)
    assert (device.power_draw_w, device.memory_utilization_pct) == (61.25, 0.0)
    assert (device.nvml_mem_total_mb, device.nvml_error) == (None, None)


def test_smi_is_asked_for_csv_with_a_header(smi, tmp_path):
    """The program gets one query and the format that the parser reads."""
    smi(f'echo "$@" > {tmp_path}/asked').sample()
    asked = (tmp_path / "asked").read_text()
    assert asked.startswith("--query-gpu=index,uuid,name,")
    assert asked.endswith("--format=csv,nounits\n")


@pytest.mark.parametrize("word", ["[Insufficient Permissions]", "-", "", "nan", "inf", "-1"])
def test_smi_untold_fields_are_none_and_keep_the_row(smi, word):
    """No way of saying "unknown" costs the row or becomes a number."""
    row = f"0, GPU-a, NVIDIA T4, 550.54, {word}, {word}, {word}, {word}, {word}"
    [device] = smi(printed(HEADER, row)).sample().devices
    assert (device.uuid, device.state) == ("GPU-a", "ok")
    assert (device.total_mb, device.used_mb, device.power_draw_w) == (None, None, None)
    assert (device.utilization_gpu_pct, device.temperature_c) == (None, None)
    assert device.reason == "nvidia-smi does not tell how much memory this GPU has"


@pytest.mark.parametrize("word", ["[N/A]", "N/A", "[Not Supported]", "Not Supported"])
def test_smi_gpu_without_memory_of_its_own_has_the_machines(smi, word):
    """Memory that is not supported is the machine's; what is not told besides stays unknown."""
    row = f"0, GPU-a, NVIDIA GB10, 580.95, {word}, {word}, {word}, {word}, {word}"
    [device] = smi(printed(HEADER, row)).sample().devices
    host = host_memory()
    assert (device.state, device.reason, device.unified) == ("ok", "", True)
    assert device.total_mb == host.total_mb
    assert abs(device.used_mb - (host.total_mb - host.available_mb)) < 2048
    assert (device.utilization_gpu_pct, device.temperature_c) == (None, None)


@pytest.mark.parametrize(
    ("name", "unified"),
    [
        ("NVIDIA GB10", True), ("Orin (nvgpu)", True), ("NVIDIA Thor", True), ("NVIDIA N1X", True),
        ("NVIDIA GeForce RTX 3090", False), ("NVIDIA A100-SXM4-80GB", False), ("Tesla T4", False),
        ("NVIDIA L40S", False), ("NVIDIA H200", False), ("NVIDIA RTX PRO 6000", False),
        ("NVIDIA CMP 170HX", False), ("NVIDIA PG506-232", False), ("NVIDIA NVS 510", False),
        ("NVIDIA DRIVE-PG199-PROD", False), ("NVIDIA DRIVE Thor", True), ("NVIDIA MX450", False),
    ],
)  # fmt: skip
def test_smi_sick_gpu_that_tells_no_memory_does_not_get_the_machines(smi, name, unified):
    """A model with memory of its own that says N/A is not integrated, but not well."""
    row = f"0, GPU-a, {name}, 580.95, [N/A], [N/A], 0, 40, 9"
    source = smi(printed(HEADER, row))
    [device] = source.sample().devices
    assert (device.unified, bool(device.total_mb), bool(device.reason)) == (
        unified,
        unified,
        not unified,
    )
    source._unified = Unified(4096)
    assert source.sample().devices[0].total_mb == 4096, "the operator knows better"


@pytest.mark.parametrize(
    ("word", "action"),
    [("None", 0), ("Reset", 1), ("Drain and Reset", 4), ("[N/A]", None), ("Something", None)],
)
def test_smi_recovery_action_has_nvml_s_number(smi, word, action):
    """Without NVML too a GPU that asks for a reset is known."""
    row = f"0, GPU-a, NVIDIA T4, 580.95, 15360, 1, 0, 40, 9, {word}"
    [device] = smi(printed(f"{HEADER}, gpu_recovery_action", row)).sample().devices
    assert (device.state, device.recovery_action) == ("ok", action)


def test_smi_gpu_with_memory_of_its_own_keeps_it(smi):
    """A GPU that told of its memory does not get the machine's when it once tells nothing."""
    rows = [
        f"0, GPU-a, NVIDIA L4, 580.95, {word}, 0, 30, 9" for word in ("23034, 1", "[N/A], [N/A]")
    ]
    source = smi(printed(HEADER, rows[0]))
    assert source.sample().devices[0].total_mb == 23034
    smi(printed(HEADER, rows[1]))
    [device] = source.sample().devices
    assert (device.total_mb, device.used_mb, device.unified) == (23034, None, False)
    assert (device.state, device.reason) == ("error", SILENT)


@pytest.mark.parametrize(
    ("cells", "state", "reason"),
    [
        ("24576, [GPU requires reset], 0, 40, 9", "lost", "must be reset"),
        ("24576, 1, 0, [Reset Required], 9", "lost", "must be reset"),
        ("GPU requires reset, 1, 0, 40, 9", "lost", "must be reset"),
        ("24576, 1, [GPU is lost], 40, 9", "lost", "is lost"),
        ("24576, [Unknown Error], 0, 40, 9", "error", "cannot read memory.used"),
        ("24576, [Internal Error 12], 0, 40, 9", "error", "cannot read memory.used"),
        ("ERR!, 1, 0, 40, 9", "error", "cannot read memory.total"),
        ("24576, 1, ERR!, 40, 9", "error", "cannot read utilization.gpu"),
        ("24576, 1, 0, [Unknown Error], 9", "error", "cannot read temperature.gpu"),
        ("24576, 1, [Not Supported], 40, ERR!", "ok", ""),
    ],
)  # fmt: skip
def test_smi_words_of_a_sick_gpu_are_its_state(smi, cells, state, reason):
    """A GPU to be reset, or whose vital values cannot be read, is not well; power may fail."""
    [device] = smi(printed(HEADER, f"0, GPU-a, NVIDIA T4, 550.54, {cells}")).sample().devices
    assert device.state == state
    assert reason in device.reason
    assert bool(reason) == bool(device.reason)


def test_smi_field_that_it_does_not_know_is_left_out(smi, tmp_path):
    """An older program fails a query with a newer field; it is asked without, and not again."""
    row = "0, GPU-a, NVIDIA T4, 418.40, 15360, 12, 0, 35, 9.5"
    refused = """echo 'Field "mig.mode.current" is not a valid field to query.'; exit 2"""
    source = smi(
        f'echo "$1" >> {tmp_path}/asked; case $1 in *mig*) {refused};; esac\n{printed(HEADER, row)}'
    )
    for _ in range(2):
        assert [d.used_mb for d in source.sample().devices] == [12]
    asked = (tmp_path / "asked").read_text().splitlines()
    assert ["mig" in line for line in asked if "query-gpu" in line] == [True, False, False]


def test_smi_lost_gpu_leaves_the_others(smi):
    """A GPU whose fields say that it is lost is lost; its neighbour is well."""
    lost = "[GPU is lost]"
    good = "1, GPU-b, NVIDIA T4, 550.54, 15360, 12, 0, 35, 9.5"
    sample = smi(printed(HEADER, ", ".join(["0", *[lost] * 8]), good)).sample()
    assert [(d.uuid, d.state) for d in sample.devices] == [
        ("UNKNOWN-box-0", "lost"),
        ("GPU-b", "ok"),
    ]


def test_smi_fails_after_it_worked_keeps_the_devices_as_errors(smi):
    """A failing program is an error in its own words, and known devices stay, without numbers."""
    source = smi(printed(HEADER, "0, GPU-a, NVIDIA T4, 550.54, 15360, 12, 0, 35, 9.5"))
    assert source.sample().error is None
    smi("echo 'Failed to initialize NVML: Unknown Error' >&2; echo more >&2; exit 255")
    sample = source.sample()
    assert sample.error == (
        "The NVIDIA driver reports an unknown error; a container that has lost its devices, as "
        "after systemd has reloaded its units, must be started anew (nvidia-smi: Failed to "
        "initialize NVML: Unknown Error)"
    )
    [device] = sample.devices
    assert (device.uuid, device.state, device.reason) == ("GPU-a", "error", sample.error)
    assert (device.total_mb, device.used_mb) == (15360, None)


def test_smi_fails_halfway_keeps_the_rows_it_printed(smi):
    """Rows printed before one GPU broke the query are good; its own row says what broke it."""
    remark = "Unable to determine the device handle for GPU0000:05:00.0: Unknown Error"
    row = "0, GPU-a, NVIDIA T4, 550.54, 15360, 12, 0, 35, 9.5"
    sample = smi(printed(HEADER, row, remark, status=15)).sample()
    assert sample.error is None
    assert [(d.uuid, d.state, d.used_mb) for d in sample.devices] == [
        ("GPU-a", "ok", 12),
        ("UNKNOWN-box-1", "error", None),
    ]
    assert sample.devices[1].reason == (
        "nvidia-smi cannot open GPU 0000:05:00.0: Unknown Error; see the kernel's log, reset it "
        "or reboot"
    )


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("echo 'No devices were found'; exit 6", "nvidia-smi failed: No devices were found"),
        ("echo 'No devices were found'", "nvidia-smi failed: No devices were found"),
        ("exit 3", "nvidia-smi failed: exit status 3, no output"),
        ("exit 0", "nvidia-smi failed: exit status 0, no output"),
        (
            "head -c 200000 /dev/zero | tr '\\0' x",
            "nvidia-smi printed no table: field larger than field limit (131072)",
        ),
    ],
)
def test_smi_without_devices_says_why(smi, body, error):
    """Text in place of rows becomes the sample's error, whatever the exit status."""
    assert smi(body).sample() == Sample((), "smi", error)


def test_smi_gpu_no_longer_listed_is_lost(smi):
    """A GPU that is no longer printed keeps its row as lost."""
    rows = [f"{i}, GPU-{i}, NVIDIA T4, 550.54, 15360, 12, 0, 35, 9.5" for i in range(2)]
    source = smi(printed(HEADER, *rows))
    assert [d.state for d in source.sample().devices] == ["ok", "ok"]
    smi(printed(HEADER, rows[0]))
    sample = source.sample()
    assert sample.error is None
    assert [(d.uuid, d.state, d.used_mb) for d in sample.devices] == [
        ("GPU-0", "ok", 12),
        ("GPU-1", "lost", None),
    ]


def test_smi_that_cannot_be_killed_is_not_started_again(smi):
    """While a program from before still runs no second one is started; then all is well."""
    source = smi(printed(HEADER))
    stuck = subprocess.Popen(["sleep", "60"])
    source._program._stuck, source._program._stuck_at = stuck, time.monotonic() - 7
    assert re.fullmatch(r"nvidia-smi has not answered for 7\.\d s", source.sample().error)
    stuck.kill()
    stuck.wait()
    assert source.sample().error is None


def test_smi_that_hangs_is_ended_with_its_children(smi, tmp_path):
    """After the limit the program and what it started are gone, and the sample says so."""
    source = smi(f"sleep 60 & echo $! > {tmp_path}/child; wait", wait_s=2.0, most_s=0.5)
    began = time.monotonic()
    sample = source.sample()
    assert time.monotonic() - began < 3.0
    assert (sample.late, sample.devices) == (False, ())
    assert re.fullmatch(r"nvidia-smi has not answered for \d\.\d s", sample.error)
    child = Path("/proc") / (tmp_path / "child").read_text().strip()
    for _ in range(200):
        if not child.exists() or ") Z " in (child / "stat").read_text():
            return
        time.sleep(0.01)
    pytest.fail("the child of nvidia-smi lives on")


def test_smi_that_is_late_counts_when_it_answers(smi, tmp_path):
    """It goes on, is asked once, has the time of its begin, and is waited for the next time."""
    row = "0, GPU-a, NVIDIA T4, 550.54, 15360, 12, 0, 35, 9.5"
    body = f"echo ${{1%=*}} >> {tmp_path}/asked; sleep 0.5; {printed(HEADER, row)}"
    source = smi(body, wait_s=0.2)
    began = time.monotonic()
    sample = source.sample()
    assert (sample.late, sample.devices) == (True, ())
    assert re.fullmatch(r"nvidia-smi has not answered for 0\.\d s", sample.error)
    while sample.late:
        sample = source.sample()
    assert [(d.uuid, d.state, d.used_mb) for d in sample.devices] == [("GPU-a", "ok", 12)]
    assert began <= sample.began < began + 0.2
    sample = source.sample()
    assert (sample.error, [d.state for d in sample.devices]) == (None, ["ok"])
    assert (tmp_path / "asked").read_text().count("--query-gpu") == 2


def test_smi_that_is_closed_while_it_runs_is_ended(smi, tmp_path):
    """Nothing of it stays behind."""
    source = smi(f"echo $$ > {tmp_path}/pid; sleep 60", wait_s=0.3)
    assert source.sample().late
    pid = int((tmp_path / "pid").read_text())
    source.close()
    eventually(lambda: not Path(f"/proc/{pid}").exists(), 2)
    assert source.sample().error is not None


def test_smi_that_cannot_be_started_says_why(tmp_path):
    """A program that is not there is an error of the sample, not an exception."""
    sample = SmiSource("box", str(tmp_path / "nvidia-smi")).sample()
    assert sample == Sample((), "smi", "nvidia-smi cannot be started: No such file or directory")


def test_smi_two_callers_take_turns(smi, tmp_path):
    """A caller that comes while another waits starts no second program beside the first."""
    busy = tmp_path / "busy"
    source = smi(f"mkdir {busy} || exit 1; sleep 0.2; rmdir {busy}; {printed(HEADER)}")
    errors = []
    threads = [
        threading.Thread(target=lambda: errors.append(source.sample().error)) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
    assert errors == [None] * 3


def test_smi_that_tells_of_fewer_gpus_than_it_counts_is_said(smi):
    """The rows count, and the host is warned: a GPU may have gone without a word."""
    rows = [f"{i}, GPU-{i}, NVIDIA T4, 550.54, 15360, 12, 0, 35, 9.5, 4" for i in range(3)]
    sample = smi(printed(f"{HEADER}, count", *rows)).sample()
    assert ([d.state for d in sample.devices], sample.error) == (["ok"] * 3, None)
    assert sample.warnings == ("nvidia-smi: it counts 4 GPUs, and tells of 3",)
    assert (
        smi(printed(f"{HEADER}, count", *(row[:-1] + "3" for row in rows))).sample().warnings == ()
    )


def test_smi_is_found_where_a_path_often_lacks_it(tmp_path, monkeypatch):
    """On PATH first, then in the folders of systems that have their own."""
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    assert find_smi([str(tmp_path / "nowhere")]) is None
    for folder in ("wsl", "path"):
        program = tmp_path / folder / "nvidia-smi"
        program.parent.mkdir()
        program.touch(mode=0o755)
        assert find_smi([str(tmp_path / "nowhere"), str(tmp_path / "wsl")]) == str(program)
