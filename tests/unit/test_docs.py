"""What the documents say is what there is."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from agent_sdk.errors import CODES
from agent_sdk.settings import sdk_settings_in_effect
from broker.cli import COMMANDS
from broker.metrics import Metrics
from broker.settings import broker_settings_in_effect

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
LUA_README = (ROOT / "lua" / "README.md").read_text()
LUA = {path.name: path.read_text() for path in sorted((ROOT / "lua").rglob("*.lua"))}
CODE = "\n".join(re.sub(r"--.*", "", text) for text in LUA.values())


def tracked(*patterns: str) -> list[Path]:
    listed = subprocess.check_output(["git", "ls-files", *patterns], cwd=ROOT, text=True)
    return [ROOT / name for name in listed.split()]


def test_keys_of_the_scripts_are_the_keys_of_the_table() -> None:
    """Every kind of key that a script spells has its row, and every row its key."""
    spelt = {m.partition(":")[0] for m in re.findall(r"P \.\. '([a-z]+:?)", CODE)}
    spelt |= {"idlehosts", "hosts", "device", "host"}  # spelt from a variable
    rows = {m.partition(":")[0] for m in re.findall(r"^\| `([a-z]+[:`])", LUA_README, re.MULTILINE)}
    assert spelt == {row.rstrip("`") for row in rows} - {"time.lua"}


def test_events_and_counters_are_listed() -> None:
    """Whoever reads the stream or the counters finds each name explained."""
    for name in re.findall(r"B\.event\('(\w+)'", CODE) + re.findall(r"B\.count\('(\w+)'", CODE):
        assert f"`{name.removeprefix('refused_')}" in LUA_README or name == "refused_", name
    for name in ("drained", "undrained", "cpu_", "refused_"):
        assert f"`{name}" in LUA_README


def test_reply_tags_are_listed() -> None:
    """Every tag that a script answers has its row."""
    for tag in set(re.findall(r"B\.reply\('([A-Z]+)'", CODE)):
        assert re.search(rf"^\|.*\b{tag}\b", LUA_README, re.MULTILINE), tag


def test_fields_of_the_pool_are_listed() -> None:
    """The pool's hash is read by people with redis-cli: each field is named."""
    created = re.search(r"'HSET', P \.\. 'pool', 'schema'.*?\)\n", CODE, re.DOTALL)
    assert created
    for field in re.findall(r"'([a-z_]+)',", created[0])[1:]:
        assert f"`{field}`" in LUA_README, field


def test_settings_are_in_the_readme() -> None:
    """Every environment variable that is read is explained."""
    for setting in sdk_settings_in_effect() + broker_settings_in_effect():
        assert f"`{setting.name}`" in README, setting.name


@pytest.mark.parametrize("code", CODES)
def test_error_code_is_in_the_readme(code: str) -> None:
    """A code on the wire can be looked up."""
    assert f"`{code}`" in README


def test_metrics_are_in_the_readme() -> None:
    """Every metric that a replica exports is named."""
    for name in re.findall(r"^# TYPE (\w+)", Metrics().text(None, None).decode(), re.MULTILINE):
        assert f"`{name}`" in README, name


def test_commands_are_in_the_readme() -> None:
    """Every command can be found."""
    for command in COMMANDS:
        assert re.search(rf"gpu-broker {command}\b|`{command}\b|; {command}\b", README), command


def test_links_between_documents_resolve() -> None:
    """No document points at nothing."""
    for path in tracked("*.md"):
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_no_file_names_a_developers_folder() -> None:
    """The tree speaks of itself alone."""
    found = re.compile(r"(?<![\w.])/(home|root|work)/\w")
    for path in tracked():
        if path.suffix in {".py", ".lua", ".md", ".toml", ".sh", ""} and path.is_file():
            hit = found.search(path.read_text(errors="replace"))
            assert not hit, f"{path.name}: {hit and hit[0]}"
