"""Engines that `gpu-broker run` gives their share of a GPU, and the imports that a run needs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from broker.run.engines import with_hint


@pytest.mark.parametrize(
    ("engine", "command", "added"),
    [
        ("vllm", ["vllm", "serve", "m"], ["--gpu-memory-utilization", "0.29"]),
        ("sglang", ["python", "-m", "sglang"], ["--mem-fraction-static", "0.26"]),
        ("trtllm", ["trtllm-serve"], ["--kv_cache_free_gpu_memory_fraction", "0.17"]),
        ("vllm", ["vllm", "--gpu-memory-utilization=0.5"], []),
        ("vllm", ["vllm", "--gpu_memory_utilization", "0.5"], []),
    ],
)
def test_engine_gets_its_share_unless_it_was_told(
    engine: str, command: list[str], added: list[str]
) -> None:
    """Rounded down; 7000 of 24000 MiB are 0.2916 of it."""
    words, flag = with_hint(command, engine, 7000, 24000)
    assert words == [*command, *added]
    assert flag == (" ".join(added) or None)


def test_share_of_trtllm_is_within_the_lease_for_weights_of_up_to_half() -> None:
    """It is a share of what the weights leave free."""
    leased, total = 10_000, 24_000
    words, _ = with_hint(["trtllm-serve"], "trtllm", leased, total)
    for weights in range(0, leased // 2 + 1, 500):
        assert weights + float(words[-1]) * (total - weights) <= leased


def test_run_needs_the_base_install_alone() -> None:
    """redis and click: no web server, no settings library."""
    code = "import sys, broker.cli.commands.run; print(*{m.partition('.')[0] for m in sys.modules})"
    loaded = set(subprocess.check_output([sys.executable, "-c", code], text=True).split())
    assert not loaded & {"fastapi", "uvicorn", "pydantic", "prometheus_client", "pynvml"}
