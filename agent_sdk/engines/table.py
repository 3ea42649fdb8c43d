"""Engines: the settings that keep each inside its lease.

Each engine means a share of something else, and most read it from the command line alone. The
versions that were read stand in `docs/reference/engines.md`, with what each setting leaves open.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from agent_sdk.engines.share import MIB, decimal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agent_sdk.engines.share import Share

BESIDE_POOLS: Final = 0.1
"""Share of a lease that SGLang takes beside weights and KV cache: activations, graphs, context."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """EngineSettings of an engine for one lease.

    Attributes:
        flag: the option and its value, to be added to the command; empty: none.
        env: variables for its process.
    """

    flag: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Engine:
    """Inference engine or framework.

    Attributes:
        settings: its settings for a share.
        takes_mb: of an option, or of a variable, the MiB that the engine takes at least when it
            is given this value; the value alone where it bounds nothing.
        frees: options that set by hand what the setting bounds.
        numbers: it reads CUDA_VISIBLE_DEVICES as numbers.
        word: the word of a command that uses the GPU; empty: any.
    """

    settings: Callable[[Share], EngineSettings]
    takes_mb: Mapping[str, Callable[[float, Share], float]] = field(default_factory=dict)
    frees: tuple[str, ...] = ()
    numbers: bool = False
    word: str = ""


def _vllm(share: Share) -> EngineSettings:
    return EngineSettings(("--gpu-memory-utilization", decimal(share.of_total)))


def _sglang(share: Share) -> EngineSettings:
    return EngineSettings(("--mem-fraction-static", decimal(share.of_free * (1 - BESIDE_POOLS))))


def _trtllm(share: Share) -> EngineSettings:
    """Return the share of what the weights leave free, for weights of up to half the lease."""
    of_rest = min(0.99, share.leased_mb / (2 * share.free_mb - share.leased_mb))
    return EngineSettings(("--kv_cache_free_gpu_memory_fraction", decimal(of_rest)))


def _torch(share: Share) -> EngineSettings:
    of_total = decimal(share.pool_mb / share.total_mb)
    return EngineSettings(env={"PYTORCH_ALLOC_CONF": f"per_process_memory_fraction:{of_total}"})


def _jax(share: Share) -> EngineSettings:
    of_total = decimal(share.pool_mb / share.total_mb)
    return EngineSettings(env={"XLA_PYTHON_CLIENT_MEM_FRACTION": of_total})


def _tensorflow(share: Share) -> EngineSettings:
    return EngineSettings(env={"TF_DEVICE_MIN_SYS_MEMORY_IN_MB": str(share.left_free_mb)})


def _cupy(share: Share) -> EngineSettings:
    return EngineSettings(env={"CUPY_GPU_MEMORY_LIMIT": str(share.pool_mb * MIB)})


def _ollama(share: Share) -> EngineSettings:
    return EngineSettings(
        env={
            "OLLAMA_GPU_OVERHEAD": str(share.left_free_mb * MIB),
            "LLAMA_ARG_FIT_TARGET": str(share.left_free_mb),
        }
    )


def _llamacpp(share: Share) -> EngineSettings:
    return EngineSettings(env={"LLAMA_ARG_FIT_TARGET": str(share.left_free_mb)})


def _comfyui(share: Share) -> EngineSettings:
    left_gib = -(-share.left_free_mb * 100 // 1024) / 100  # upwards: it is what stays free
    return EngineSettings(("--reserve-vram", f"{left_gib:.2f}"))


def _of_total(value: float, share: Share) -> float:
    return value * share.total_mb


def _of_free(value: float, share: Share) -> float:
    return value * share.free_mb


def _bytes(value: float, _: Share) -> float:
    return value / MIB


def _all_but_mb(value: float, share: Share) -> float:
    return share.free_mb - value


def _all_but_gib(value: float, share: Share) -> float:
    return share.free_mb - value * 1024


ENGINES: Final[Mapping[str, Engine]] = {
    "vllm": Engine(
        _vllm,
        {"--gpu-memory-utilization": _of_total, "--kv-cache-memory-bytes": _bytes},
        frees=("--kv-cache-memory-bytes",),
    ),
    "sglang": Engine(_sglang, {"--mem-fraction-static": _of_free}, numbers=True),
    "trtllm": Engine(
        _trtllm,
        {
            "--kv_cache_free_gpu_memory_fraction": _of_free,
            "--free_gpu_memory_fraction": _of_free,
        },
        frees=("--extra_llm_api_options", "--config"),
    ),
    "torch": Engine(_torch),
    "deepspeed": Engine(_torch, numbers=True),
    "jax": Engine(
        _jax,
        {"XLA_PYTHON_CLIENT_MEM_FRACTION": _of_total, "XLA_CLIENT_MEM_FRACTION": _of_total},
    ),
    "tensorflow": Engine(_tensorflow, {"TF_DEVICE_MIN_SYS_MEMORY_IN_MB": _all_but_mb}),
    "cupy": Engine(_cupy, {"CUPY_GPU_MEMORY_LIMIT": _bytes}),
    "ollama": Engine(_ollama, word="serve"),
    "llamacpp": Engine(
        _llamacpp,
        {"--fit-target": _all_but_mb, "-fitt": _all_but_mb, "LLAMA_ARG_FIT_TARGET": _all_but_mb},
        frees=("-ngl", "--gpu-layers", "--n-gpu-layers"),
    ),
    "comfyui": Engine(
        _comfyui, {"--reserve-vram": _all_but_gib}, frees=("--gpu-only", "--highvram")
    ),
}
