"""MIG devices through nvidia-smi, whose list and log tell a part of it each."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from broker.devices.smi.mig import least_mb, memory_of, parts_of
from broker.devices.smi.source import SmiSource

SMI = Path(__file__).parents[1] / "fakes" / "smi" / "nvidia-smi"

GPU = {
    "uuid": "GPU-a", "name": "NVIDIA A100-SXM4-40GB", "memory.total": 40960, "memory.used": 10,
    "mig.mode.current": "Enabled",
    "mig": [
        {"profile": "3g.20gb", "uuid": "MIG-GPU-a/1/0", "total": 19968, "used": 13},
        {"profile": "1g.5gb+me", "uuid": "MIG-b", "total": 4864, "used": 12, "index": 4},
    ],
}  # fmt: skip
WHOLE = {"uuid": "GPU-w", "name": "NVIDIA A100-SXM4-40GB", "memory.total": 40960, "memory.used": 9}


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A source over the stand-in, and a way to change what that says."""
    told = tmp_path / "machine.json"
    monkeypatch.setenv("FAKE_SMI_FILE", str(told))
    monkeypatch.setenv("PATH", os.environ["PATH"])
    found = SmiSource("box", str(SMI))

    def say(**machine):
        told.write_text(json.dumps({"gpus": [GPU, WHOLE]} | machine))
        return {row.uuid: row for row in found.sample().devices}

    return say


def test_parts_have_the_memory_that_the_log_tells(source):
    """Each is a device with a place, a profile in its name, and the GPU as its parent."""
    rows = source()
    assert [(r.index, r.uuid) for r in rows.values()] == [
        (0, "GPU-a"), (1, "GPU-w"), (100, "MIG-GPU-a/1/0"), (104, "MIG-b"),
    ]  # fmt: skip
    assert (rows["GPU-a"].state, rows["GPU-w"].state) == ("mig", "ok")
    part = rows["MIG-b"]
    assert (part.state, part.parent, part.reason) == ("ok", "GPU-a", "")
    assert (part.total_mb, part.used_mb, part.processes) == (4864, 12, ())
    assert (part.name, part.model) == (
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb+me",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb me",
    )


def test_parts_without_a_log_have_what_their_profile_has_at_least(source):
    """Their use is not told then."""
    rows = source(no_xml=True)
    assert [(rows[u].total_mb, rows[u].used_mb) for u in ("MIG-GPU-a/1/0", "MIG-b")] == [
        (18022, None), (4505, None),
    ]  # fmt: skip


def test_process_that_is_named_on_the_gpu_alone_may_be_on_any_part(source):
    """Then nothing is known of the parts' processes, and they are not called unused."""
    app = {"pid": 7, "used_gpu_memory": 300}
    rows = source(apps=[app | {"gpu_uuid": "MIG-b"}])
    assert [(p.pid, p.memory_mb) for p in rows["MIG-b"].processes] == [(7, 300)]
    assert rows["MIG-GPU-a/1/0"].processes == ()
    rows = source(apps=[app | {"gpu_uuid": "GPU-a"}, app | {"gpu_uuid": "MIG-b"}])
    assert rows["MIG-b"].processes is rows["MIG-GPU-a/1/0"].processes is None


def test_parts_that_are_not_listed_once_stay_in_error(source):
    """A list that fails is no proof that they are gone; one without them is."""
    source()
    gpu = {k: v for k, v in GPU.items() if k != "mig"}
    rows = source(gpus=[gpu | {"uuid": "GPU-A"}, WHOLE])
    assert "ENABLE_NVML=true" not in rows["GPU-A"].reason, "it is listed, with no part"
    rows = source(gpus=[GPU, WHOLE], list_fails=True)
    assert "ENABLE_NVML=true" in rows["GPU-a"].reason
    for part in ("MIG-GPU-a/1/0", "MIG-b"):
        assert (rows[part].state, rows[part].listed, rows[part].total_mb) == (
            "error", True, GPU["mig"][part == "MIG-b"]["total"],
        )  # fmt: skip
    rows = source(gpus=[gpu, WHOLE])
    assert [(rows[p].state, rows[p].listed) for p in ("MIG-b",)] == [("lost", False)]


def test_list_with_a_warning_counts_by_its_lines(source):
    """A failing status proves no part to be gone, unless the program always ends with it."""
    source()
    part = source(exit=14, tail=["WARNING: infoROM is corrupted"])["MIG-b"]
    assert (part.state, part.total_mb, part.used_mb) == ("ok", 4864, 12)
    one = [GPU | {"mig": GPU["mig"][:1]}, WHOLE]
    for status, of_list, state in ((0, 9, "error"), (14, 9, "error"), (14, 14, "lost")):
        rows = source(gpus=one, exit=status, list_exit=of_list)
        assert [(rows[u].state, rows[u].listed) for u in ("MIG-GPU-a/1/0", "MIG-b")] == [
            ("ok", True), (state, state == "error"),
        ]  # fmt: skip


def test_mig_mode_that_cannot_be_read_is_not_whole(source):
    """A GPU that may be divided is not lent as one."""
    rows = source(gpus=[GPU | {"mig.mode.current": "[Unknown Error]"}, WHOLE])
    assert (rows["GPU-a"].state, rows["GPU-w"].state) == ("error", "ok")


@pytest.mark.parametrize(
    ("profile", "mb"),
    [("1g.5gb", 4505), ("1g.24gb+me.all", 21626), ("1c.3g.40gb", 36044), ("7g", None)],
)
def test_least_memory_is_less_than_the_profile_says(profile, mb):
    """Profiles round up; a real 1g.5gb has 4864 MiB, a 1g.18gb of an H200 16384."""
    assert least_mb(profile) == mb


@pytest.mark.parametrize("text", ["", "<a>", "GPU 0: x\n  MIG 1g Device 0: (UUID: b c)", "\0"])
def test_list_or_log_that_is_none_tells_nothing(text):
    """Text of any kind in their place is no part, and no error."""
    assert (parts_of(text), memory_of(text)) == ({}, {})
