"""Claims of the documents, held against the code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import pytest

from agent_sdk import settings as sdk_settings
from agent_sdk.keys import Keys
from agent_sdk.policy import FIELDS
from agent_sdk.scripts.source import CORE, KEEPING, REST
from agent_sdk.state import snapshot
from agent_sdk.state.events import NAMES
from agent_sdk.state.finding_kinds import KINDS
from broker.dashboard import FOLDER
from broker.devices import Sample
from broker.devices.sample import State
from broker.hooks.hook import KINDS as HOOK_FIELDS
from broker.hooks.tenure import DISABLED_EVENT, DISABLED_FIELDS
from broker.maintenance.store_check import StoreMemory
from broker.mcp.key_index import KEPT_MS, MOST
from broker.metrics import Metrics
from broker.metrics.pool import STATES, PoolReading
from broker.reporter import STOPPING
from broker.settings import Settings
from tests.pools import Pool, device, granted, token

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import redis

    from tests.servers import Server

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"
METRICS = (REFERENCE / "metrics.md").read_text()
KEYS = (REFERENCE / "keys.md").read_text()
EVENTS = (REFERENCE / "events.md").read_text()
VERBS = (REFERENCE / "verbs.md").read_text()
CODE = "\n".join(
    re.sub(r"--.*", "", path.read_text()) for path in sorted((ROOT / "lua").rglob("*.lua"))
)
"""Every script and library file without its comments."""

HELD = device("gpu-0", 80_000)
"""The device whose report, lease, renewal and release the call table is about."""


def table(page: str, first: str) -> list[list[str]]:
    """List the rows of a page's tables whose first heading starts so, as cells."""
    rows: list[list[str]] = []
    for part in page.split(f"\n| {first}")[1:]:
        heading, _, *lines = f"| {first}{part}".partition("\n\n")[0].splitlines()
        wanted = lines if rows else [heading, *lines]
        rows += [[cell.strip() for cell in line.strip("|").split("|")] for line in wanted]
    return rows


def quoted(text: str) -> list[str]:
    """Yield the words in backquotes of a document's text; whole blocks of code do not count."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def first_cells(page: str) -> list[str]:
    """Yield the words in backquotes of the first column of a reference page's tables."""
    rows = re.findall(r"^\| (`[^|]*) \|", (REFERENCE / page).read_text(), re.MULTILINE)
    return [name for row in rows for name in quoted(row)]


def section(key: str) -> str:
    """Return what keys.md says of the fields of a hash."""
    return KEYS.partition(f"\n## Fields of `{key}`\n")[2].partition("\n## ")[0]


def calls(function: str) -> Iterator[list[str]]:
    """The arguments, as they are written, of each call of a function in the Lua sources."""
    for match in re.finditer(rf"(?<!function ){re.escape(function)}\(", CODE):
        depth, parts = 1, [""]
        for letter in CODE[match.end() :]:
            depth += (letter in "({") - (letter in ")}")
            if depth == 0:
                break
            if letter == "," and depth == 1:
                parts.append("")
            else:
                parts[-1] += letter
        yield [part.strip() for part in parts]


def literals(expression: str) -> list[str]:
    """The strings that a Lua expression may give; what is compared with is not among them."""
    return re.findall(r"(?<!== )'(\w+)'", expression)


ENDS = {end for verb in ("end", "close") for _, how in calls(f"broker.{verb}_lease")
        for end in literals(how)}  # fmt: skip
"""Ends of a lease."""

ENDS_OF_WAITS = {end for _, how, *_ in calls("broker.queue.end_wait") for end in literals(how)}
"""Ends of a wait."""


def tracked() -> list[Path]:
    """Every file of the tree, those included that are not committed yet."""
    listed = subprocess.check_output(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, text=True
    )
    return [path for name in listed.splitlines() if (path := ROOT / name).is_file()]


def keys_of_the_table() -> dict[str, tuple[str, str]]:
    """Key, as the table spells it -> its type and TTL."""
    return {quoted(key)[0]: (kind, ttl) for key, kind, ttl, *_ in table(KEYS, "Key ")[1:]}


def test_keys_of_the_scripts_are_the_keys_of_the_table() -> None:
    """Every kind of key that a script spells has its row, and every row is spelt by a script."""
    rows = {re.sub("<.*", "", key) for key in keys_of_the_table()}
    assert {found + colon for found, colon in re.findall(r"P \.\. '(\w+)(:?)", CODE)} <= rows
    assert {row for row in rows if not re.search(rf"'{row}['*]", CODE)} == set()


def test_keys_of_a_pool_are_of_the_type_and_ttl_of_the_table(pool: Pool) -> None:
    """Every key that a pool in use has is one row's, and each row has such a key."""
    pool.report((HELD, device("gpu-1", 40_000), device("gpu-2", 500)))
    granted(pool.acquire(token("held")))
    granted(pool.acquire(token("gone")))
    pool.release(token("gone"))
    pool.live_on(13_000)
    pool.reap()
    now_ms = pool.reap()[1]
    use = {"same": 1, "state": "ok", "used_mb": 0, "use": f"{token('held')}={now_ms}:{now_ms}:::"}
    pool.report((("gpu-0", use),))
    granted(pool.acquire(token("rest"), placement="pack"))
    pool.acquire(token("waits"), memory_mb=79_500, agent="ann", wait_ms=60_000)
    pool.acquire(token("offered"), exclusive=1, agent="dee", wait_ms=60_000)
    pool.release(token("rest"))
    pool.policy(max_memory_per_agent_mb=1000)
    pool.acquire(token("capped"), memory_mb=1000, agent="dee", wait_ms=60_000)
    pool.redis.hset(f"{pool.keys.base}:teams", "a", "weight=1")
    pool.redis.set(f"{pool.keys.base}:evicted:{token('gone')}", 1, px=60_000)
    pool.redis.hset(f"{pool.keys.base}:preempting", "gone", "a 100")
    pool.redis.zadd(f"{pool.keys.base}:worklist", {"queue:*/*/m17": 1})
    pool.redis.zadd(f"{pool.keys.base}:backfill", {"gpu-1": 1})
    pool.redis.sadd(f"{pool.keys.base}:limited", "*/*/m17/a")
    pool.redis.zadd(f"{pool.keys.base}:drains", {"device:gone": 1})
    rows = {re.sub(r"<\w+>", r"[^:]+", key): what for key, what in keys_of_the_table().items()}
    seen = set()
    for key in pool.stored():
        name = key.removeprefix(f"{pool.keys.base}:")
        (row,) = [row for row in rows if re.fullmatch(row, name)]
        kind, ttl = rows[row]
        assert pool.redis.type(key) == kind, name
        assert (pool.redis.pttl(key) == -1) == (ttl == "none"), name
        seen.add(row)
    by_hand = ("backfill", "teams", "limited", "preempting")
    pool.redis.delete(*(f"{pool.keys.base}:{name}" for name in by_hand))
    assert seen == rows.keys()


@pytest.mark.parametrize("key", ["pool", "record", "device"])
def test_fields_of_a_hash_are_listed(pool: Pool, key: str) -> None:
    """A person with redis-cli reads these hashes: each field that a pool in use has is named."""
    pool.report((device("gpu-0", simulated=0, reason="fine", nvml_error=""),), sampled_ms=1)
    ask: dict[str, Any] = {"max_hold_ms": 60_000, "owner": "somebody"}
    granted(pool.acquire(token("held"), **ask))
    granted(pool.acquire(token("cpu"), host="none", on_unavailable="cpu"))
    pool.revoke(token("held"))
    names = {
        "pool": ["pool"],
        "record": [f"record:{token('held')}", f"record:{token('cpu')}"],
        "device": ["device:gpu-0"],
    }[key]
    found = {field for name in names for field in pool.hash(name)}
    pool.revoke(token("held"), force=1)  # what it holds cools now
    found |= {field for name in names for field in pool.hash(name)}
    pool.skew(2)
    pool.report((device("gpu-0", simulated=0),), sampled_ms=pool.reap()[1])  # and is free
    found |= {field for name in names for field in pool.hash(name)}
    assert found - FIELDS.keys() - set(quoted(section(key))) == set()


def test_keys_and_fields_of_webhooks_are_listed() -> None:
    """Brokers write them, and no verb."""
    keys = Keys("p")
    written = {keys.hooks, keys.hook("<name>"), keys.hooks_sender}
    rows = {quoted(key)[0] for key, *_ in table(KEYS, "Webhook's key")[1:]}
    assert {key.removeprefix(f"{keys.base}:") for key in written} == rows
    listed = {name for row in table(section("hook"), "Field")[1:] for name in quoted(row[0])}
    assert listed == HOOK_FIELDS.keys()


def test_key_of_mcp_is_listed() -> None:
    """Brokers write it, and no verb."""
    keys = Keys("p")
    (row,) = table(KEYS, "MCP's key")[1:]
    assert f"{keys.base}:{quoted(row[0])[0]}" == keys.mcp("<key>")
    assert row[2] == f"{KEPT_MS // 86_400_000} days"
    assert f"at most {MOST};" in row[3]


def test_counters_are_listed() -> None:
    """Whoever reads the counters finds each explained, and no other."""
    found = {name for (counter,) in calls("broker.count") for name in literals(counter)}
    found |= ENDS
    found = {name.removeprefix("cpu_") for name in found} - {""}
    listed = set(quoted(section("stats")))
    assert {"cpu_<name>", "refused_<code>"} <= listed
    assert found - {"refused_"} == listed - {"cpu_<name>", "refused_<code>"}


def test_events_are_listed_with_their_fields() -> None:
    """Whoever reads the stream finds each event and what it carries, and no other."""
    found: dict[str, set[str]] = {}
    for name, *pairs in calls("broker.event"):
        fields = {
            field
            for pair in pairs[::2]
            for field in (["device", "host"] if pair == "what" else literals(pair))
        }
        for event in {"outcome": ENDS, "how": ENDS_OF_WAITS}.get(name) or literals(name):
            found[event] = found.get(event, set()) | fields
    found[DISABLED_EVENT] = set(DISABLED_FIELDS)  # the one that a broker writes
    listed = {
        event: set(re.findall(r"\w+", re.sub(r"\(.*?\)|up:|\bor\b", "", fields)))
        for events, fields, _ in table(EVENTS, "Event ")[1:]
        for event in quoted(events)
    }
    listed["host_away"] -= {"version"}
    assert found == listed


def test_reply_tags_are_listed() -> None:
    """Every tag that a script answers has its row, and no other."""
    found = {tag for tag, *_ in calls("return reply") for tag in re.findall(r"'([A-Z]+)'", tag)}
    listed = {tag for tags, *_ in table(VERBS, "Tag ")[1:] for tag in tags.split(", ")}
    assert found == listed


def said_calls(verb: str) -> list[str]:
    """The commands of a verb in docs/reference/verbs.md, in order."""
    heading, *rows = table(VERBS, "acquire: ")
    (column,) = [n for n, cell in enumerate(heading) if cell.startswith(f"{verb}: ")]
    commands: list[str] = []
    for row in rows:
        for name, times in re.findall(
            r"\b([A-Z]{3,})\b(?: \w+ \N{MULTIPLICATION SIGN}(\d))?", row[column]
        ):
            commands += [name] * int(times or 1)
    assert heading[column] == f"{verb}: {len(commands)}"
    return commands


@pytest.fixture(scope="module")
def server(own: Server) -> Server:
    """A server that nobody else talks to: what it runs is counted here."""
    return own


def ran(client: redis.Redis, call: Callable[[], list[Any]]) -> list[str]:
    """The commands that the script of one call runs, in order; the test's own clock left out."""
    commands = []
    with client.monitor() as monitor:  # type: ignore[no-untyped-call] # redis-py's
        call()
        client.echo("over")
        for said in monitor.listen():
            if said["command"].upper().startswith("ECHO OVER"):
                break
            if said["client_type"] == "lua":
                commands.append(said["command"].partition(" ")[0].upper())
    commands.remove("MGET")
    return commands


@pytest.mark.parametrize("verb", ["acquire", "renew", "release", "reap", "report"])
def test_calls_of_a_verb_are_those_of_the_table(pool: Pool, verb: str) -> None:
    """Server time is everybody's time: each call that a script makes is explained, in order."""
    day_ms = 86_400_000
    pool.freeze()
    pool.report((HELD, device("gpu-1", 40_000)), deadline_ms=day_ms)
    mine = token("mine")
    if verb in {"renew", "release"}:
        granted(pool.acquire(mine))
    call: Callable[[], list[Any]] = {
        "acquire": lambda: pool.acquire(mine),
        "renew": lambda: pool.renew(mine),
        "release": lambda: pool.release(mine),
        "reap": pool.reap,
        "report": lambda: pool.report((HELD,), deadline_ms=day_ms),
    }[verb]
    assert ran(pool.redis, call) == said_calls(verb)


def test_page_explains_every_word_that_it_shows() -> None:
    """Whoever sees the word there for the first time can read what it means."""
    states, findings, events = (
        set(re.findall(r"^  (\w+):", part, re.MULTILINE))
        for part in re.split(r"\nexport const (?!STATES)", (FOLDER / "words.js").read_text())
    )
    assert states == {*get_args(State), *STATES, dict(STOPPING)["state"]} - {"other"}
    assert events == set(NAMES)
    assert findings == set(KINDS)


def test_reference_tables_are_as_generated() -> None:
    """The tables of the reference are what their declarations in the code say."""
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "reference_tables.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_settings_are_those_of_the_page() -> None:
    """Every environment variable that is read is explained, and no other."""
    sdk = Path(sdk_settings.__file__).read_text()
    names = set(re.findall(r'env\.get\("(\w+)"\)', sdk))
    for field in Settings.model_fields.values():
        names |= set(getattr(field.validation_alias, "choices", ()))
    for path in (ROOT / "broker" / "cli").rglob("*.py"):
        names |= set(re.findall(r'\benvvar="(\w+)"', path.read_text()))
    assert {"REDIS_URL", "GPU_ORCHESTRATOR_PORT"} <= names
    of_the_system = {"XDG_STATE_HOME", "TERM", "NO_COLOR"}
    assert {"NO_COLOR", "GPU_BROKER_MCP_RUN"} <= names
    assert names - of_the_system == set(first_cells("settings.md"))


def test_metrics_are_in_the_documents(pool: Pool) -> None:
    """Every metric that a replica may export is named, and every one that is named is exported."""
    status = pool.look(snapshot.pool(pool.keys))
    devices = pool.look(snapshot.devices(pool.keys))
    seen = PoolReading(status, devices, (), None, memory=StoreMemory(1, 2))
    text = Metrics().text(seen, Sample((), "nvml", error="no driver")).decode()
    names = set(re.findall(r"^# TYPE (\w+)", text, re.MULTILINE))
    assert {"gpu_orchestrator_active_leases", "gpu_orchestrator_nvml_error_info"} <= names
    assert names - set(quoted(METRICS)) == set()
    ours = {name for name in quoted(METRICS) if re.fullmatch(r"gpu_broker_\w+", name)}
    assert ours - names == set()


def test_library_files_are_listed_in_the_order_of_reading() -> None:
    """A reader of lua/README.md finds each file of `lib/` once, first what others stand on."""
    page = (ROOT / "lua" / "README.md").read_text()
    listed = [
        name.removesuffix(".lua") for row in table(page, "File ")[1:] for name in quoted(row[0])
    ]
    assert listed == [*CORE, *REST, *KEEPING]


def test_links_between_documents_resolve() -> None:
    """No document points at nothing: neither at a file nor at a heading that is not there."""
    for path in tracked():
        if path.suffix != ".md":
            continue
        for target in re.findall(r"\]\((?![a-z]+:)([^)\s]+)", path.read_text()):
            name, _, heading = target.partition("#")
            to = path.parent / name if name else path
            assert to.exists(), f"{path.name}: {target}"
            if heading:
                lines = re.findall(r"^#+ (.+)$", to.read_text(), re.MULTILINE)
                slugs = {re.sub(r"[^\w -]", "", line).lower().replace(" ", "-") for line in lines}
                assert heading in slugs, f"{path.name}: {target}"


def test_no_file_names_a_developers_folder() -> None:
    """The tree speaks of itself alone."""
    folder = re.compile(r"(?<![\w.}])/(home|root|work)/")
    for path in tracked():
        hit = folder.search(path.read_text(errors="replace"))
        assert not hit, f"{path.name}: {hit and hit[0]}"
