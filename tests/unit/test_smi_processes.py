"""Processes through nvidia-smi: a second query, which may fail without the first."""

from __future__ import annotations

import time

import pytest

from broker.devices.sample import NAMELESS
from tests.api.brokers import eventually

GPUS = """index, uuid, name, driver_version, memory.total [MiB], memory.used [MiB]
0, GPU-a, NVIDIA T4, 550.54, 15360, 12
1, GPU-b, NVIDIA T4, 550.54, 15360, 12"""

HEADER = "gpu_uuid, pid, used_gpu_memory [MiB]"


def answering(apps, gpus=GPUS):
    """A program that runs these shell lines when it is asked for processes."""
    return f"case $1 in --query-compute-apps=*) {apps};; *) cat <<'END'\n{gpus}\nEND\nesac"


def printing(*rows):
    return "cat <<'END'\n" + "\n".join(rows) + "\nEND\n"


def processes(sample):
    assert sample.error is None
    assert [(d.uuid, d.state, d.used_mb) for d in sample.devices] == [
        ("GPU-a", "ok", 12),
        ("GPU-b", "ok", 12),
    ]
    return [
        None if d.processes is None else [(p.pid, p.memory_mb) for p in d.processes]
        for d in sample.devices
    ]


def test_processes_come_from_a_query_of_their_own(smi, tmp_path):
    """Both queries are made, one after the other, in the format that is read."""
    source = smi(f'echo "$@" >> {tmp_path}/asked\n' + answering(printing(HEADER)))
    assert processes(source.sample()) == [[], []]
    first, second = (tmp_path / "asked").read_text().splitlines()
    assert first.startswith("--query-gpu=index,uuid,name,")
    assert second == "--query-compute-apps=gpu_uuid,pid,used_memory --format=csv,nounits"


@pytest.mark.parametrize("column", ["used_gpu_memory [MiB]", "used_memory [MiB]"])
def test_processes_are_read_by_column_name(smi, column):
    """In any order of columns; each process once, with the most that a row has of it."""
    rows = [f"{column}, new.field, pid, gpu_uuid", "100, x, 7, GPU-b", "3, x, 8, GPU-b",
            "250, x, 7, GPU-b", "9, x, 5, GPU-of-another"]  # fmt: skip
    sample = smi(answering(printing(*rows))).sample()
    assert processes(sample) == [[], [(7, 250), (8, 3)]]


@pytest.mark.parametrize("word", ["[N/A]", "N/A", "[Insufficient Permissions]", "ERR!"])
def test_process_without_memory_is_there_with_none(smi, word):
    """Not told is None, never 0; without a pid it is nobody."""
    rows = [HEADER, f"GPU-a, 7, {word}", f"GPU-a, {word}, 5"]
    assert processes(smi(answering(printing(*rows))).sample()) == [[(7, None)], []]


def unseen(sample):
    return [d.unseen for d in sample.devices]


def test_process_without_a_pid_makes_the_list_of_its_gpu_incomplete(smi):
    """Such a row is of another container: the other rows are named, and the reason with them."""
    rows = [HEADER, "GPU-a, 7, 10", "GPU-a, [N/A], 5", "GPU-b, 8, 1"]
    sample = smi(answering(printing(*rows))).sample()
    assert processes(sample) == [[(7, 10)], [(8, 1)]]
    assert unseen(sample) == [NAMELESS, ""]
    sample = smi(answering(printing(HEADER, "GPU-a, 0, 5"))).sample()
    assert (processes(sample), unseen(sample)) == ([None, []], [NAMELESS, ""])


def test_process_without_a_gpu_may_be_on_any(smi):
    """No list is complete then."""
    sample = smi(answering(printing(HEADER, "[N/A], 7, 10", "GPU-b, 8, 1"))).sample()
    assert processes(sample) == [None, [(8, 1)]]
    assert unseen(sample) == [NAMELESS, NAMELESS]


@pytest.mark.parametrize(
    ("word", "mode"),
    [("Default", "default"), ("Exclusive_Process", "exclusive"), ("Exclusive_Thread", "exclusive"),
     ("Prohibited", "prohibited"), ("[N/A]", ""), ("E. Process", "")],
)  # fmt: skip
def test_compute_mode_is_told(smi, word, mode):
    """A word that is not known is no mode."""
    gpus = GPUS.replace("[MiB]\n", "[MiB], compute_mode\n").replace(", 12", f", 12, {word}")
    sample = smi(answering(printing(HEADER), gpus)).sample()
    assert {d.compute_mode for d in sample.devices} == {mode}


@pytest.mark.parametrize(
    ("word", "action"),
    [("None", 0), ("Reset", 1), ("Reboot", 2), ("Drain P2P", 3),
     ("Drain and Reset", 4), ("Bus Reset", 6), ("[N/A]", None), ("Polish", None)],
)  # fmt: skip
def test_recovery_action_is_told(smi, word, action):
    """By NVML's numbers; a word that is not known is none of them."""
    gpus = GPUS.replace("[MiB]\n", "[MiB], gpu_recovery_action\n").replace(", 12", f", 12, {word}")
    sample = smi(answering(printing(HEADER), gpus)).sample()
    assert {d.recovery_action for d in sample.devices} == {action}


@pytest.mark.parametrize(
    "apps",
    [
        "exit 3",
        "echo 'Field \"used_memory\" is not a valid field to query.'; exit 2",
        "echo 'No running processes'",
        f"echo '{HEADER}'; echo 'Unable to determine the device handle'",
        "head -c 200000 /dev/zero | tr '\\0' x",
        "kill -9 $$",
        ":",
    ],
)
def test_processes_that_cannot_be_told_are_none_and_the_sample_stands(smi, apps):
    """A second query that fails in any way costs the processes and nothing else."""
    sample = smi(answering(apps)).sample()
    assert processes(sample) == [None, None]
    [why] = set(unseen(sample))
    assert why.startswith("nvidia-smi does not name the processes on this GPU: ")


def test_processes_that_hang_cost_the_gpus_one_wait(smi):
    """The sample stands, and says why; the hanging question ends by its own limit."""
    source = smi(answering("sleep 60"), wait_s=0.5, most_s=1.5)
    sample = source.sample()
    assert processes(sample) == [None, None]
    why = "nvidia-smi does not name the processes in time: no answer for 0.5 s"
    assert unseen(sample) == [why] * 2
    began = time.monotonic()
    assert processes(source.sample()) == [None, None]
    assert time.monotonic() - began < 0.4
    smi(answering(printing(HEADER, "GPU-a, 7, 1")))
    eventually(lambda: processes(source.sample()) == [[(7, 1)], []], 5, 0.1)


def test_processes_are_not_asked_for_where_there_is_no_gpu(smi, tmp_path):
    """A machine whose GPUs cannot be told has no second program started."""
    sample = smi(f"echo x >> {tmp_path}/asked; exit 9").sample()
    assert sample.error == "nvidia-smi failed: exit status 9, no output"
    assert (tmp_path / "asked").read_text() == "x\n"
