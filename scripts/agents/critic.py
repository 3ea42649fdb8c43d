"""The critic: reads what the analyst said of each article; on the CPU, so it asks for no GPU."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before anything is imported that may look at it

from common import Article, Articles, arguments, build_app, serve
from sentiment import seeds_in

LONG_SENTENCE = 25
"""Words in a sentence, on average, from which it is too long."""

HARD = 30.0
"""Flesch's reading ease below which a text is for specialists."""

SHORT = 40
"""Words below which a text is a note."""

CLEAR = 3
"""Surplus of words of one lexicon that makes a text clearly so."""

app = build_app("critic", about=lambda: {"gpu": False})


@dataclass(frozen=True, slots=True)
class Verdict:
    """The critic's reading of an analyst's result."""

    id: str
    label: str


@dataclass(frozen=True, slots=True)
class Work:
    """Articles, and the results for them; which is whose is told by the id."""

    articles: Articles
    results: list[Verdict]


@app.post("/review")
def review(work: Work) -> dict[str, Any]:
    """Return a review for each article, in their order."""
    labels = {verdict.id: verdict.label for verdict in work.results}
    return {"reviews": [review_of(x, labels.get(x.id)) for x in work.articles]}


def review_of(article: Article, label: str | None) -> dict[str, Any]:
    """Figures of readability, whether the label fits the words, and what is to be looked at."""
    words = re.findall(r"[A-Za-z']+", article.text)
    sentences = max(1, len(re.findall(r"[.!?](?:\s|$)", article.text)))
    length = len(words) / sentences
    # Flesch 1948: 206.835 - 1.015 words per sentence - 84.6 syllables per word.
    syllables = sum(map(_syllables, words)) / max(1, len(words))
    ease = round(206.835 - 1.015 * length - 84.6 * syllables, 1)
    positive, negative = seeds_in(article.whole)
    consistent = label in _labels_for(positive - negative)
    checks = {
        "no_result": label is None,
        "label_disagrees": label is not None and not consistent,
        "long_sentences": length > LONG_SENTENCE,
        "hard_to_read": ease < HARD,
        "short": len(words) < SHORT,
    }
    return {
        "id": article.id,
        "words": len(words),
        "sentences": sentences,
        "words_per_sentence": round(length, 1),
        "reading_ease": ease,
        "lexicon": {"positive": positive, "negative": negative},
        "consistent": consistent,
        "flags": [flag for flag, raised in checks.items() if raised],
    }


def _syllables(word: str) -> int:
    """Count groups of vowels, less a silent e."""
    groups = len(re.findall(r"[aeiouy]+", word.lower().removesuffix("e")))
    return max(1, groups)


def _labels_for(balance: int) -> set[str]:
    """Return the labels that fit a text with so many more positive than negative words."""
    if abs(balance) < CLEAR:
        return (
            {"neutral"} if balance == 0 else {"neutral", "positive" if balance > 0 else "negative"}
        )
    return {"positive" if balance > 0 else "negative"}


if __name__ == "__main__":
    serve(app, arguments("critic", __doc__).parse_args())
