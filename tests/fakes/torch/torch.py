"""A stand-in for torch, with as many CUDA devices as CUDA_VISIBLE_DEVICES names; numpy computes.

Each process that imports it adds a line `pid CUDA_VISIBLE_DEVICES` to the file FAKE_TORCH_SAW.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from typing import Self

VISIBLE = os.environ["CUDA_VISIBLE_DEVICES"]

with Path(os.environ["FAKE_TORCH_SAW"]).open("a") as saw:
    saw.write(f"{os.getpid()} {VISIBLE}\n")


class cuda:  # noqa: N801 - as torch names it
    @staticmethod
    def is_available() -> bool:
        return VISIBLE != ""


class Tensor:
    """The part of a tensor that the analyst uses."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def to(self, _: str) -> Self:
        return self

    def index_add_(self, dim: int, index: Tensor, source: Tensor) -> None:
        assert dim == 0
        np.add.at(self.array, index.array, source.array)

    def __matmul__(self, other: Tensor) -> float:
        return float(self.array @ other.array)


def device(name: str) -> str:
    assert name == "cuda"
    return name


def from_numpy(array: np.ndarray) -> Tensor:
    return Tensor(array)


def zeros(length: int, device: str) -> Tensor:
    assert device == "cuda"
    return Tensor(np.zeros(length, np.float32))
