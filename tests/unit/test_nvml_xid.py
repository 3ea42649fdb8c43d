"""XIDs: NVIDIA's error codes, which the driver tells once and we pass on once."""

from __future__ import annotations

import time

import pytest

from broker.devices.nvml.xid import Xids


def told(sample):
    """The XIDs of a sample, by index."""
    return {row["index"]: row["xids"] for row in sample["devices"] if row["xids"]}


def gather(host, enough):
    """All XIDs of the samples until there are so many, by index."""
    found = {}

    def seen(sample):
        for index, xids in told(sample).items():
            found.setdefault(index, []).extend(xids)
        return sum(map(len, found.values())) >= enough

    host.until(seen)
    return found


def test_xids_are_told_once_in_the_order_in_which_they_came(machine):
    """79, then 94, then 13, on the GPU that had them, and not again in the sample after."""
    host = machine()
    assert told(host.sample()) == {}
    host.say("xid=3/79", "xid=3/94", "xid=3/13")
    assert gather(host, 3) == {3: [79, 94, 13]}
    assert told(host.sample()) == {}
    host.say("xid=3/79", "xid=3/94", "xid=3/13", "xid=0/48", "xid=3/79")
    assert gather(host, 2) == {0: [48], 3: [79]}
    host.close()


def test_xid_of_a_divided_gpu_is_told_of_its_parts_as_well(machine):
    """An XID that breaks a GPU breaks its MIG devices."""
    host = machine("mig=2/10240+10240")
    host.sample()
    host.say("mig=2/10240+10240", "xid=2/79")
    assert gather(host, 3) == {2: [79], 300: [79], 301: [79]}


@pytest.mark.parametrize(
    "function", ["nvmlDeviceRegisterEvents", "nvmlDeviceGetSupportedEventTypes"]
)
def test_gpu_that_cannot_be_watched_is_well_and_not_watched(machine, function):
    """It costs neither its own row nor the XIDs of the others."""
    host = machine(f"fail={function}/3/3")
    assert {row["state"] for row in host.sample()["devices"]} == {"ok"}
    host.say("xid=3/79", "xid=4/94")
    assert gather(host, 1) == {4: [94]}


def test_gpu_that_could_not_be_watched_for_a_moment_is_tried_again(machine):
    """A call that failed, unlike one that is not supported, is made again at the next sample."""
    host = machine("fail=nvmlDeviceRegisterEvents/999/3")
    host.sample()
    host.say()
    host.sample()
    host.say("xid=3/79")
    assert gather(host, 1) == {3: [79]}


def test_xid_of_a_gpu_that_cannot_be_named_is_everyones(machine):
    """A GPU that has just fallen off the bus may be any of them."""
    host = machine("count=3")
    host.sample()
    host.say("count=3", "xid=900/79")
    assert gather(host, 3) == {0: [79], 1: [79], 2: [79]}


def test_xids_wait_for_a_sample_that_has_its_row(machine):
    """One that came while NVML hung is in the next sample of its GPU, also a failed one."""
    host = machine(deadline_s=2.0)
    host.sample()
    host.say("hang=nvmlDeviceGetCount_v2", "xid=3/79")
    sample = host.sample()
    assert sample["error"].startswith("NVML has not answered for ")
    assert told(sample) == {3: [79]}
    host.let_go()
    assert told(host.until(lambda sample: sample["error"] is None)) == {}


def test_wait_that_fails_ends_the_watch_until_nvml_is_opened_again(machine):
    """Nothing else suffers; and once NVML is open anew, XIDs come again."""
    host = machine(reopen_s=0.6)
    host.sample()
    host.say("fail=nvmlEventSetWait_v2/999")
    for _ in range(5):
        assert {row["state"] for row in host.sample()["devices"]} == {"ok"}
        time.sleep(0.1)
    host.say()
    seen = []

    def again(sample):
        seen.append(told(sample))
        host.say(*[f"xid=1/{code}" for code in range(1, len(seen) + 1)])
        return bool(seen[-1])

    host.until(again)
    assert set(seen[-1]) == {1}
    host.close()


def test_wait_that_hangs_holds_up_neither_samples_nor_the_end(machine):
    """Samples come as quickly as ever, and the process ends; NVML is not shut under the call."""
    host = machine("hang=nvmlEventSetWait_v2", "lost=5", reopen_s=0.0)
    first = host.sample()
    assert first["error"] is None
    for _ in range(3):
        sample = host.sample()
        assert (sample["error"], len(sample["devices"])) == (None, 8)
    assert host.sample()["took_s"] < 0.5
    assert host.close() < 3.0


def test_wait_that_hung_while_nvml_should_be_opened_anew_is_begun_anew(machine):
    """The watch that was told to end is replaced as soon as it has, though all GPUs are well."""
    host = machine("hang=nvmlEventSetWait_v2", "lost=5", reopen_s=0.0)
    host.sample(3)
    host.say()
    assert {row["state"] for row in host.sample()["devices"]} == {"ok"}
    host.let_go()
    time.sleep(0.6)  # the call that hung takes no more XIDs
    said = []

    def come(sample):
        said.append(f"xid=1/{len(said) + 1}")
        host.say(*said)
        return told(sample)

    assert list(told(host.until(come))) == [1]
    host.close()


def test_wait_that_hangs_outlives_the_failure_of_nvml(machine):
    """NVML that failed is opened anew beside the hanging call, and not shut before that ends."""
    host = machine("hang=nvmlEventSetWait_v2", reopen_s=0.0)
    host.sample()
    host.say("fail=nvmlDeviceGetCount_v2/999")
    assert host.sample()["error"] == "The NVIDIA driver reports an unknown error"
    host.say("lost=5")
    for _ in range(3):
        assert host.sample()["error"] is None
    host.let_go()
    host.say()
    host.until(lambda sample: {row["state"] for row in sample["devices"]} == {"ok"})
    host.close()


def test_wait_that_comes_back_at_once_is_not_repeated_at_once(machine):
    """A driver that does not wait makes us no busy loop."""
    host = machine("fail=nvmlEventSetWait_v2/10")
    host.sample()
    before_s = host.cpu_s
    time.sleep(1)
    assert host.cpu_s - before_s < 0.4


def test_registration_that_hangs_costs_its_own_row(machine):
    """A GPU on which that call hangs is overdue; the others are read, and their XIDs come."""
    host = machine("hang=nvmlDeviceRegisterEvents/3", deadline_s=2.0)
    states = [row["state"] for row in host.sample()["devices"]]
    assert states == ["ok"] * 3 + ["error"] + ["ok"] * 4
    host.say("hang=nvmlDeviceRegisterEvents/3", "xid=4/79")
    assert gather(host, 1) == {4: [79]}
    host.let_go()
    host.until(lambda sample: {row["state"] for row in sample["devices"]} == {"ok"})
    host.close()


def test_flood_of_one_code_hides_no_other():
    """However often a code comes between two samples, a later one is told."""
    xids = Xids()
    for code in [13] * 10_000 + [79, 94]:
        xids.add("GPU-a", code)
    xids.add("GPU-b", 48)
    taken = xids.take(["GPU-a"])["GPU-a"]
    assert (len(taken), taken[-3:]) == (66, (13, 79, 94))
    assert xids.take(["GPU-a", "GPU-b"]) == {"GPU-a": (), "GPU-b": (48,)}
