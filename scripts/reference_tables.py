"""Write the generated pages of docs/reference/: the policy.

--check writes nothing, and exits with 1 when a page is not what it should be.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from agent_sdk.policy import ACTIONS, FIELDS, PolicyField
from agent_sdk.teams.policy import FIELDS as TEAM_FIELDS
from agent_sdk.teams.policy import MODEL_FIELDS, MOST_MODELS
from broker.cli.policies.file import NAMES

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


TEAMS_HEAD = """
## Teams

A team's policy is its quota, what it may borrow and lends, and limits of its requests.
Over HTTP and in the SDK a field has the name of this table; in a file it has the other one.

| Field | In a file | Default | Accepts | What it does |
|---|---|---|---|---|
"""

MODELS_TEXT = """
`models` has quotas of models of GPUs, for at most {most} models: {fields} for each.
[Quotas by model](../concepts/fair-share.md#quotas-by-model) has their rules.
"""

FILE_TEXT = """
## As a file

`gpu-broker policy apply -f policy.yaml` makes a file the policy; `--dry-run` shows the changes and
writes nothing.

```yaml
reclaim_after_s: 60
preempt_grace_s: 2m
teams:
  nlp:
    nominal: 96GiB
    weight: 2
    max_hold: 2d
  vision:
    nominal: {gpus: 4, model: NVIDIA L4}
    borrow_limit: 48GiB
    max_priority: 5
  speech:
    nominal: 24GiB
    models:
      NVIDIA H100: {nominal: {gpus: 2}, borrow_limit: 0}
      NVIDIA L4: {nominal: 48GiB}
```

- The whole file is checked before anything is written; each problem is named with its line.
- All of it becomes one version of the policy. When another changed the policy meanwhile, nothing is
  written: apply the file again.
- A field of the pool that the file does not name stays as it is.
- `teams` names all teams: a team that is not there has no policy any more. Without `teams` they
  stay as they are; `teams: {}` removes all.
- Sizes are written as `96GiB`, times as `90s`, `10m`, `2h` or `2d`; `null` is no limit.
- A quota in GPUs becomes MiB by the registered devices of that model, and is shown. It does not
  follow the devices later: apply the file again when they change.
- `nominal: {gpus: 4, model: NVIDIA L4}` is a size alone: the quota is of the whole pool. A quota of
  a model stands below `models`.
- `gpu-broker policy get -o yaml` prints such a file.
- The [events](events.md) `policy` and `teams` tell each change, its version, and the name of the
  operator.
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
    in_file = {name: of for of, name in NAMES.items()}
    teams = [
        f"| `{x.name}` | `{in_file[x.name]}` | {'no limit' if x.default is None else x.default} "
        f"| {x.accepts} | {x.meaning} |"
        for x in TEAM_FIELDS.values()
    ]
    actions = [f"| `{word}` | {means} |" for word, means in ACTIONS.items()]
    parts = (
        (POLICY_HEAD, rows), (ACTIONS_HEAD, actions), (TEAMS_HEAD, teams)
    )  # fmt: skip
    tables = "".join(f"{head}{chr(10).join(lines)}\n" for head, lines in parts)
    words = " and ".join(f"`{name}` (`{in_file[name]}`)" for name in MODEL_FIELDS)
    return tables + MODELS_TEXT.format(fields=words, most=MOST_MODELS) + FILE_TEXT


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
