"""The analyst's arithmetic."""

from __future__ import annotations

import subprocess
import sys

import pytest

from scripts.agents.sentiment import NumpyEngine, TorchEngine, keywords_of, label_of, seeds_in
from tests.agents.processes import ARTICLES, FOLDER

TEXTS = [f"{article['title']}. {article['text']}" for article in ARTICLES]

LABELS = {
    "harbour-lamps": "positive",
    "glass-mill": "negative",
    "tram-timetable": "neutral",
    "river-fever": "positive",
    "dam-crack": "negative",
    "chess-bridge": "neutral",
    "cheese-census": "neutral",
    "orchard-robots": "positive",
}
"""Labels as a person reads the articles."""


def test_shipped_articles_are_labelled_as_a_person_reads_them() -> None:
    """Eight of eight; the scores use the room between -1 and 1."""
    engine = NumpyEngine()
    scores = [engine.score(text) for text in TEXTS]
    labels = [label_of(score) for score in scores]
    assert dict(zip((a["id"] for a in ARTICLES), labels, strict=True)) == LABELS
    assert all(60 <= len(article["text"].split()) <= 100 for article in ARTICLES)
    assert max(scores) - min(scores) > 1


@pytest.mark.parametrize("text", ["", "...", "1234", "the and of", "Ünïcödé ☃"])
def test_text_that_says_nothing_is_neutral(text: str) -> None:
    """No words, no numbers that are none."""
    assert label_of(NumpyEngine().score(text)) == "neutral"


@pytest.mark.parametrize(
    ("word", "sign"), [("happy", 1), ("improvements", 1), ("sad", -1), ("crashing", -1)]
)
def test_word_or_a_relative_of_it_decides(word: str, sign: int) -> None:
    """Parts of words carry over to words that no lexicon has."""
    assert NumpyEngine().score(word) * sign > 0


def test_length_does_not_change_the_sentiment() -> None:
    """The same text twice is not twice as positive."""
    engine = NumpyEngine()
    assert engine.score(TEXTS[0] * 2) == pytest.approx(engine.score(TEXTS[0]), abs=1e-4)


def test_scores_are_the_same_in_every_process() -> None:
    """Whatever PYTHONHASHSEED says."""
    code = (
        f"import sys; sys.path.insert(0, {str(FOLDER)!r}); import sentiment;"
        f"print(sentiment.NumpyEngine().score({TEXTS[0]!r}), sentiment.keywords_of([{TEXTS[0]!r}]))"
    )
    found = {
        subprocess.check_output([sys.executable, "-c", code], env={"PYTHONHASHSEED": seed})
        for seed in "12"
    }
    assert len(found) == 1


def test_torch_agrees_with_numpy() -> None:
    """To 1e-4, on the CPU of torch where it is installed."""
    pytest.importorskip("torch")
    numpy, torch = NumpyEngine(), TorchEngine("cpu")
    for text in ["", *TEXTS]:
        assert torch.score(text) == pytest.approx(numpy.score(text), abs=1e-4)


def test_keywords_are_frequent_here_and_rare_elsewhere() -> None:
    """tf-idf over the batch: what every text has loses to what one has; ties by the alphabet."""
    shared = "council council"
    found = keywords_of([f"{shared} harbour harbour lamps", f"{shared} cheese cheese butter"])
    assert found == [["harbour", "council", "lamps"], ["cheese", "council", "butter"]]
    assert keywords_of([]) == []
    assert keywords_of([""]) == [[]]


def test_seeds_count_words_with_their_endings() -> None:
    """The critic compares a label with them."""
    assert seeds_in("Celebrated gains, and a terrible loss. Harmful!") == (2, 3)
