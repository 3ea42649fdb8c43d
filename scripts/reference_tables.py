"""Write the generated pages of docs/reference/: the policy.

--check writes nothing, and exits with 1 when a page is not what it should be.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from agent_sdk.policy import ACTIONS, FIELDS, PolicyField

FOLDER = Path(__file__).parents[1] / "docs" / "reference"

POLICY_HEAD = """\
# Policy

**For** operators: what may be leased, and what happens about what hosts find.
`python scripts/reference_tables.py` writes this page from `agent_sdk/policy.py`.

A pool has one policy. Every lease obeys it, whichever way it is asked for.
Show it with `gpu-broker policy get`, `GET /policy` or the page. Change it with
`gpu-broker policy set FIELD=VALUE...`, `POST /policy` or `LeaseClient.set_policy`: a change of
several fields happens as a whole or not at all, and counts the policy's `version` up by one.
While `safe_mode` is on, only switching it off is accepted. Over HTTP it is read as
`safe_mode_read_only` and cannot be set. [SAFE_MODE](../how-to/operate.md#safe_mode) tells all of
it, also with which value a new pool begins.

| Field | Default | Accepts | What it does |
|---|---|---|---|
"""

ACTIONS_HEAD = """
## Actions

| Action | What it means |
|---|---|
"""


def shown(field: PolicyField) -> str:
    """Return a field's default as it is written."""
    if field.name == "safe_mode":
        return "false on the embedded store, else true"
    if field.kind == "flag":
        return str(field.default).lower()
    return str(field.default) or "empty"


def policy_page() -> str:
    """Return the page about the policy."""
    rows = [f"| `{x.name}` | {shown(x)} | {x.accepts} | {x.meaning} |" for x in FIELDS.values()]
    actions = [f"| `{word}` | {means} |" for word, means in ACTIONS.items()]
    return POLICY_HEAD + "\n".join(rows) + "\n" + ACTIONS_HEAD + "\n".join(actions) + "\n"


def main() -> int:
    """Write the pages, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    pages = {"policy.md": policy_page()}
    if not parser.parse_args().check:
        for name, text in pages.items():
            (FOLDER / name).write_text(text, encoding="utf-8")
        return 0
    stale = [name for name, text in pages.items() if (FOLDER / name).read_text("utf-8") != text]
    for name in stale:
        print(f"docs/reference/{name} is not as generated: run python scripts/reference_tables.py",
              file=sys.stderr)  # fmt: skip
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
