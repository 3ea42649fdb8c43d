"""The mini pipeline over HTTP: the scout's articles, in batches through the analyst and the critic.

Progress goes to stderr, and what was done as JSON to --output. An agent that fails ends it with
exit code 1; that there is no orchestrator does not: the analyst goes on without a GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from common import port_of

DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""No proxy stands between agents."""

TIMEOUT_S = 120.0


class AgentFailed(Exception):
    """An agent gave no answer, or not the one that it should."""


def ask(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """POST JSON; the answer.

    Raises:
        AgentFailed: with the URL and why.
    """
    headers = {"Content-Type": "application/json"}
    try:
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)  # noqa: S310 - the address is the caller's own
        with DIRECT.open(request, timeout=TIMEOUT_S) as reply:
            answer = json.load(reply)
    except (OSError, ValueError) as error:  # a status of 400 and more is an OSError too
        raise AgentFailed(f"{url}: {error}") from error
    if not isinstance(answer, dict):
        raise AgentFailed(f"{url}: no JSON object")
    return answer


def step(asked: argparse.Namespace, number: int, articles: list[dict[str, Any]]) -> dict[str, Any]:
    """Return one batch through the analyst and the critic.

    Raises:
        AgentFailed: one of them failed, or left an article out.
    """
    began = time.monotonic()
    analyzed = ask(f"{asked.analyst}/analyze", {"articles": articles})
    work = {"articles": articles, "results": analyzed.get("results")}
    reviewed = ask(f"{asked.critic}/review", work)
    seconds = round(time.monotonic() - began, 3)
    ids = [article["id"] for article in articles]
    for agent, found in (("analyst", analyzed.get("results")), ("critic", reviewed.get("reviews"))):
        if [each.get("id") for each in found or []] != ids:
            raise AgentFailed(f"{agent}: not a result for each article of batch {number}")
    devices = {result["device"] for result in analyzed["results"]}
    return {
        "batch": number,
        "device": devices.pop() if len(devices) == 1 else "mixed",
        "reason": analyzed["reason"],
        "seconds": seconds,
    }


def run(asked: argparse.Namespace, done: dict[str, Any]) -> None:
    """All batches; `done` tells at any time how far it got.

    Raises:
        AgentFailed: an agent failed.
    """
    articles = ask(f"{asked.scout}/fetch", {"limit": asked.articles}).get("articles", [])
    done["articles"] = len(articles)
    batches = [articles[at : at + asked.batch] for at in range(0, len(articles), asked.batch)]
    for number, batch in enumerate(batches, 1):
        found = step(asked, number, batch)
        done["steps"].append(found)
        done["completed"] += len(batch)
        why = f" ({found['reason']})" if found["reason"] else ""
        print(
            f"batch {number}/{len(batches)}: {found['device']}{why}, {found['seconds']} s",
            file=sys.stderr,
            flush=True,
        )
        if number < len(batches):
            time.sleep(asked.pause)


def main() -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    for agent in ("scout", "analyst", "critic"):
        parser.add_argument(f"--{agent}", help="its URL; default: this machine, deploy/ports.env")
    parser.add_argument("--articles", type=int, default=8)
    parser.add_argument("--batch", type=int, default=2, help="articles in a batch")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between batches")
    parser.add_argument("--output", type=Path, help="a file for the JSON; default: stdout")
    asked = parser.parse_args()
    for agent in ("scout", "analyst", "critic"):
        url = getattr(asked, agent) or f"http://127.0.0.1:{port_of(agent)}"
        setattr(asked, agent, url.rstrip("/"))
    done: dict[str, Any] = {"articles": 0, "completed": 0, "steps": []}
    try:
        run(asked, done)
    except AgentFailed as error:
        done["error"] = str(error)
        print(f"pipeline: {error}", file=sys.stderr)
    text = json.dumps(done, indent=2) + "\n"
    if asked.output:
        asked.output.parent.mkdir(parents=True, exist_ok=True)
        asked.output.write_text(text)
    else:
        print(text, end="")
    return 1 if "error" in done else 0


if __name__ == "__main__":
    sys.exit(main())
