"""Drivers that go, come back, or hang, under a process that holds NVML open."""

from __future__ import annotations

import time

import pytest

from tests.api.brokers import eventually

DIFFER = (
    "The NVIDIA driver and its library differ in version, as after an upgrade: "
    "reload the driver or reboot, then restart this process"
)
HERE = [f"process={i}/{i + 10}/100" for i in range(8)]


def assert_whole(sample):
    assert sample["error"] is None
    assert [
        (row["state"], [(p["pid"], p["memory_mb"]) for p in row["processes"]])
        for row in sample["devices"]
    ] == [("ok", [(i + 10, 100)]) for i in range(8)]


def assert_xids_come(host):
    """Say one more XID of GPU 6 until one is told: which of them is not the matter."""
    said = []

    def told(sample):
        said.append(f"xid=6/{len(said) + 1}")
        host.say(*HERE, *said)
        return bool(sample["devices"][6]["xids"])

    sample = host.until(told)
    assert [row["index"] for row in sample["devices"] if row["xids"]] == [6]


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (1, "NVML is not initialised"),
        (9, "The NVIDIA driver is not loaded"),
        (18, DIFFER),
    ],
)
def test_driver_that_goes_and_comes_back_is_opened_anew(machine, error, sentence):
    """Gone: each row stays, without numbers, and says why. Back: all of it, XIDs included."""
    host = machine(*HERE)
    assert_whole(host.sample())
    assert_xids_come(host)
    host.say(f"driver={error}")
    for _ in range(3):
        sample = host.sample()
        assert sample["error"] == sentence
        assert [(row["state"], row["reason"], row["used_mb"], row["processes"])
                for row in sample["devices"]] == [("error", sentence, None, None)] * 8  # fmt: skip
    host.say(*HERE)
    assert_whole(host.sample())
    assert_xids_come(host)
    host.close()


@pytest.mark.parametrize("error", [1, 9, 18])
def test_session_that_only_gpus_find_over_is_opened_anew_at_the_next_sample(machine, error):
    """The count still answers, no GPU does: that does not wait for the time of a reopening."""
    host = machine(*HERE, f"stale={error}", reopen_s=1000.0)
    sample = host.sample()
    assert sample["error"] is None
    assert {row["state"] for row in sample["devices"]} == {"error"}
    assert_whole(host.sample())
    host.close()


def test_call_that_finds_the_session_over_counts_for_more_than_one_that_failed(machine):
    """After a lesser failure too: no number of a driver that is not there any more is told."""
    late = "fail=nvmlDeviceGetComputeRunningProcesses_v3/18"
    host = machine(*HERE)
    host.sample()
    host.say("power=10", late)
    assert {(row["state"], row["reason"], row["used_mb"]) for row in host.sample()["devices"]} == {
        ("error", DIFFER, None)
    }


def test_failures_leave_no_threads_behind(machine):
    """NVML that fails again and again while a GPU hangs is opened again, and nothing piles up."""
    host = machine("hang=3", deadline_s=0.3)
    host.sample()
    threads = host.threads
    for _ in range(6):
        host.say("fail=nvmlDeviceGetCount_v2/999")
        assert host.sample()["error"]
        host.say()
        eventually(lambda: host.sample()["error"] is None, 10)  # 0.3 s are little on a busy machine
    time.sleep(0.6)
    assert host.threads <= threads + 1
    host.let_go()
    host.close()


def test_driver_and_library_that_differ_from_the_start_are_told(machine):
    """Nothing is known and why is said; after the reload everything is there."""
    host = machine("init=18")
    sample = host.sample()
    assert (sample["devices"], sample["error"]) == ([], DIFFER)
    host.say(*HERE)
    assert_whole(host.sample())


def test_session_is_opened_again_while_the_watch_goes_on(machine):
    """NVML is opened anew for a lost GPU without a call of ours under way, time and again."""
    host = machine("lost=2", reopen_s=0.0)
    host.sample(10)
    host.say(*HERE)
    host.sample()
    assert_whole(host.sample())
    assert_xids_come(host)
    host.close()


def test_gpu_that_hangs_for_ten_seconds_leaves_the_others_alive(machine):
    """Its row is overdue the whole time; seven are sampled in time, with XIDs; then it is well."""
    host = machine(*HERE, deadline_s=1.0, reopen_s=0.0)
    assert_whole(host.sample())
    words = [*HERE, "hang=nvmlDeviceGetComputeRunningProcesses_v3/3"]
    host.say(*words)
    until = time.monotonic() + 10
    xids, samples = [], 0
    while time.monotonic() < until:
        sample = host.sample()
        samples += 1
        assert sample["took_s"] < 2.5
        rows = sample["devices"]
        xids += rows[5]["xids"]
        assert rows[3]["state"] == "error"
        assert rows[3]["reason"].startswith("NVML has not answered for ")
        assert (rows[3]["total_mb"], rows[3]["processes"]) == (81559, None)
        assert {row["state"] for row in rows if row["index"] != 3} == {"ok"}
        host.say(*words, "xid=5/43")
        time.sleep(0.1)
    assert samples > 20
    assert xids == [43]
    host.let_go()
    host.say(*HERE)
    assert_whole(host.until(lambda sample: sample["devices"][3]["state"] == "ok"))
    host.close()


def test_slow_opening_makes_no_look_slow(machine):
    """It is waited for; from then on looks are quick, and the host warns of nothing."""
    host = machine("hang=init", deadline_s=0.7)
    for _ in range(3):
        assert host.sample()["error"].startswith("NVML has not answered for ")
    host.let_go()
    host.until(lambda sample: not sample["error"] and not sample["warnings"])
    host.close()


def test_slow_gpu_that_is_gone_slows_no_look(machine):
    """The last call to it took long, and nothing is asked of it any more."""
    host = machine("count=3", deadline_s=0.7)
    host.sample()
    host.say("count=3", "hang=2")
    host.until(lambda sample: sample["devices"][2]["state"] == "error")
    host.say("count=2")
    host.let_go()
    gone = host.until(lambda sample: sample["devices"][2]["state"] == "lost")
    assert gone["devices"][2]["listed"] is False
    host.until(lambda sample: not sample["warnings"])
    host.close()
