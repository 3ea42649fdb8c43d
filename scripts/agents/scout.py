"""The scout: finds articles, here in a file, and needs no GPU for it, so it never asks for one."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before anything is imported that may look at it

from common import Article, arguments, build_app, serve

FOUND = tuple(
    Article(**article)
    for article in json.loads((Path(__file__).parent / "articles.json").read_text())
)

app = build_app("scout", about=lambda: {"gpu": False, "articles": len(FOUND)})


@dataclass(frozen=True, slots=True)
class Fetch:
    """A request for articles."""

    limit: Annotated[int, Field(ge=0, le=1000)] = 10


@app.post("/fetch")
def fetch(asked: Fetch) -> dict[str, Any]:
    """Yield that many articles; past the last it begins again, with ids that tell the round."""
    return {"articles": [_article(at) for at in range(asked.limit)]}


def _article(at: int) -> Article:
    round_, index = divmod(at, len(FOUND))
    article = FOUND[index]
    return replace(article, id=f"{article.id}-{round_ + 1}") if round_ else article


if __name__ == "__main__":
    serve(app, arguments("scout", __doc__).parse_args())
