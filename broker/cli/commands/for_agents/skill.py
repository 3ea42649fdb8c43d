"""`gpu-broker skill`: the page that teaches a coding agent to lease, and its installation."""

from __future__ import annotations

import os
import sys
from importlib import resources
from pathlib import Path
from typing import Final

import click

from broker.cli import FAILED
from broker.text.screen import dump, one_line, say

NAME: Final = "gpu-lease"

PLACES: Final = (".agents/skills", ".claude/skills")
"""Folders in which agents look for skills; the first always, the others where they are used."""


@click.group()
def skill() -> None:
    """Teach a coding agent when to lease, wait, use the CPU and release.

    The page has the form of agentskills.io: gpu-lease/SKILL.md.

    \b
    Examples:
      gpu-broker skill show
      gpu-broker skill install                    below the present folder
      gpu-broker skill install ~/.claude/skills
    """


@skill.command("show")
def show_skill() -> None:
    """Print the page."""
    dump(_page())


@skill.command()
@click.argument("folder", metavar="[DIR]", required=False, type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Overwrite a page that was changed.")
def install(folder: Path | None, force: bool) -> None:
    """Write gpu-lease/SKILL.md into DIR.

    Default .agents/skills, and .claude/skills where there is a .claude, below this folder.
    """
    folders = [folder] if folder else [Path(x) for x in PLACES if x == PLACES[0] or _used(x)]
    failed = [each for each in folders if not _install(each / NAME / "SKILL.md", force=force)]
    sys.exit(FAILED if failed else 0)


def _used(place: str) -> bool:
    return Path(place).parent.is_dir()


def _page() -> str:
    return resources.files("broker.skills").joinpath(NAME, "SKILL.md").read_text(encoding="utf-8")


def _install(path: Path, *, force: bool) -> bool:
    """Write the page; return False, with the reason on stderr, where that must not be."""
    page = _page()
    try:
        before = path.read_text(encoding="utf-8", errors="replace") if path.exists() else None
        if before == page:
            say(one_line(f"{path} is as it should be"))
            return True
        if before is not None and not force:
            text = f"{path} is there with another content: --force overwrites it"
            say(one_line(f"gpu-broker: {text}"), err=True)
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".SKILL.md.{os.getpid()}")
        new.write_text(page, encoding="utf-8")
        new.replace(path)
    except OSError as error:
        say(one_line(f"gpu-broker: {path}: {error.strerror}; name another DIR"), err=True)
        return False
    say(one_line(f"{'overwrote' if before is not None else 'wrote'} {path}"))
    return True
