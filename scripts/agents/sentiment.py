"""The analyst's arithmetic: hashed vectors of words and their parts, a sentiment axis, keywords.

A text is the sum of its words' vectors; a word's vector has a one at the bucket of the word and
smaller ones at those of its character n-grams, each with a sign, all by CRC-32: the same in every
process. The axis runs from the mean of NEGATIVE to that of POSITIVE. The two engines agree to 1e-4.
"""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DIMENSIONS = 1 << 16

NGRAMS = (4, 5)
"""Lengths of the parts of a word, which is marked < and > at its ends."""

PARTS_WEIGHT = 0.5
"""Weight of all parts of a word together, beside the word itself."""

GAIN = 30.0
"""Makes of a projection a score that uses the room between -1 and 1."""

NEUTRAL = 0.2
"""Scores up to so far from 0 are neutral."""

KEYWORDS = 5


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


POSITIVE = _words("""
    achievement award benefit brilliant calm celebrate cheerful cure delight eager excellent
    flourish fortunate gain generous glad good grateful growth happy heal hope improve innovative
    joy kind love peace pleased praise progress prosper proud recover rescue reward safe smile
    success thrive triumph welcome win wonderful
""")

NEGATIVE = _words("""
    accident anger angry awful bad bankrupt blame broken catastrophe collapse complain conflict
    corrupt crash crime crisis damage danger death debt decline defeat delay disaster disease fail
    failure fear flood fraud grief harm hurt injure loss lose outrage pollute poor protest sad
    shortage suffer terrible threat tragedy violence worse
""")

COMMON = _words("""
    about after again all also and any are because been before but can could did does during each
    every for from had has have her his how into its just last like made more most much new not now
    off one only other our out over said say says she should since some such than that the their
    them then there these they this those three through two under until was were what when where
    which while who will with would year years you
""")
"""Words that say nothing of what a text is about."""


def words_of(text: str) -> list[str]:
    """Return the words that mean something, in their order, in lower case."""
    found = re.findall(r"[a-z]+", text.lower())
    return [word for word in found if len(word) > 2 and word not in COMMON]  # noqa: PLR2004 - two letters are no word


def features_of(words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the buckets (int64) and weights (float32) that make the vector of these words."""
    pairs = [pair for word in words for pair in _features(word)]
    buckets = np.array([bucket for bucket, _ in pairs], dtype=np.int64)
    return buckets, np.array([weight for _, weight in pairs], dtype=np.float32)


def _features(word: str) -> Iterator[tuple[int, float]]:
    marked = f"<{word}>"
    parts = [marked[at : at + n] for n in NGRAMS for at in range(len(marked) - n + 1)]
    yield _hashed(marked + "!", 1.0)
    yield from (_hashed(part, PARTS_WEIGHT / len(parts)) for part in parts)


def _hashed(feature: str, weight: float) -> tuple[int, float]:
    code = zlib.crc32(feature.encode())
    return code % DIMENSIONS, weight if code >> 31 else -weight


def _mean_vector(words: frozenset[str]) -> np.ndarray:
    buckets, weights = features_of(sorted(words))
    total = np.bincount(buckets, weights, DIMENSIONS)
    return (total / len(words)).astype(np.float32)


def axis() -> np.ndarray:
    """From negative to positive: float32, one number for each dimension, of length 1."""
    difference = _mean_vector(POSITIVE) - _mean_vector(NEGATIVE)
    return difference / np.linalg.norm(difference)


def _score(projection: float, words: int) -> float:
    """Between -1 and 1; a text is not the more positive for being longer."""
    return math.tanh(GAIN * projection / max(words, 1))


class NumpyEngine:
    """The arithmetic on the CPU."""

    name = "numpy"

    def __init__(self) -> None:
        self._axis = axis()

    def score(self, text: str) -> float:
        """Return the sentiment of a text, between -1 and 1."""
        words = words_of(text)
        buckets, weights = features_of(words)
        vector = np.bincount(buckets, weights, DIMENSIONS).astype(np.float32)
        return _score(float(vector @ self._axis), len(words))


class TorchEngine:
    """The same on a device of torch, which is imported here and nowhere else.

    Args:
        device: as torch names it, say `cuda`.

    Raises:
        ImportError: there is no torch.
        RuntimeError: there is no such device.
    """

    name = "torch"

    def __init__(self, device: str) -> None:
        import torch  # noqa: PLC0415 - only once a GPU is leased

        self._torch: Any = torch
        if device == "cuda" and not torch.cuda.is_available():
            raise RuntimeError("torch sees no CUDA device")
        self._device = torch.device(device)
        self._axis = torch.from_numpy(axis()).to(self._device)

    def score(self, text: str) -> float:
        """Return the sentiment of a text, between -1 and 1."""
        words = words_of(text)
        buckets, weights = (
            self._torch.from_numpy(part).to(self._device) for part in features_of(words)
        )
        vector = self._torch.zeros(DIMENSIONS, device=self._device)
        vector.index_add_(0, buckets, weights)
        return _score(float(vector @ self._axis), len(words))


def label_of(score: float) -> str:
    """`positive`, `neutral` or `negative`."""
    if abs(score) <= NEUTRAL:
        return "neutral"
    return "positive" if score > 0 else "negative"


def keywords_of(texts: Sequence[str]) -> list[list[str]]:
    """For each text the words that are frequent in it and rare in the others, best first."""
    counts = [Counter(words_of(text)) for text in texts]
    within = Counter(word for count in counts for word in count)

    def weight(count: Counter[str], word: str) -> float:
        return count[word] * (math.log((1 + len(texts)) / (1 + within[word])) + 1)

    return [
        sorted(count, key=lambda word, of=count: (-weight(of, word), word))[:KEYWORDS]
        for count in counts
    ]


def seeds_in(text: str) -> tuple[int, int]:
    """Count a text's words of POSITIVE and of NEGATIVE, also with an ending."""
    words = words_of(text)
    positive, negative = (_inflected(seeds) for seeds in (POSITIVE, NEGATIVE))
    return sum(word in positive for word in words), sum(word in negative for word in words)


def _inflected(seeds: frozenset[str]) -> frozenset[str]:
    endings = ("", "s", "es", "d", "ed", "ing", "ly", "ful", "ous")
    return frozenset(
        stem + ending
        for seed in seeds
        for stem in (seed, seed.removesuffix("e"))
        for ending in endings
    )
