"""Settings of an engine, given to a command: its option, its variables, and remarks about both.

Everything that keeps the setting from working is said: a shell in between, an option or a variable
of the user's own that takes more than the lease, an option that sets by hand what is bounded.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agent_sdk.engines.environment import engine_of, settings_of
from agent_sdk.engines.share import share_of
from agent_sdk.engines.visible import on_amd, without_number
from broker.run.torch_version import old_torch
from broker.text.table import gib

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from agent_sdk import Lease
    from agent_sdk.engines.share import Share
    from agent_sdk.engines.table import Engine

SHELLS: Final = re.compile(r"(?:ba|da|z|k|a|fi|mk|pdk)?sh|busybox|su|runuser|script|flock")
"""Programs whose -c has a command in one word."""

NAMED_FIRST: Final = {"busybox", "flock", "script", "su"}
"""Programs among them that take another word before the -c."""

PYTHONS: Final = re.compile(r"(?:python|pypy)[\d.]*")

SUFFIXES: Final = {"k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "K": 2.0**10, "M": 2.0**20,
                   "G": 2.0**30, "T": 2.0**40}  # fmt: skip
"""Units of vLLM's sizes in bytes: small decimal, capital binary."""

ALLOCATOR: Final = "PYTORCH_ALLOC_CONF"

ALLOCATORS: Final = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF", ALLOCATOR)
"""Variables of PyTorch's allocator; it reads the first that is set, the second for AMD alone."""

LEAST_LETTERS: Final = 8
"""Letters from which on an option may be a longer one that is shortened, as argparse allows."""

WITH_VALUE: Final = re.compile(r"[-+][A-Za-z]*[oWX]")
"""Options of shells and of Python whose value is the next word."""

FRACTION: Final = "per_process_memory_fraction"


@dataclass(slots=True)
class EngineSetup:
    """A command with the settings of its engine.

    Attributes:
        words: the command.
        env: variables to set for it.
        added: the settings that were given to it, as text.
        flag: the option that was added to the command, as text; empty: none.
        remarks: sentences about what is not bounded.
    """

    words: list[str]
    env: dict[str, str] = field(default_factory=dict)
    added: list[str] = field(default_factory=list)
    flag: str = ""
    remarks: list[str] = field(default_factory=list)


def set_up(
    command: Sequence[str], engine: str, lease: Lease, environ: Mapping[str, str]
) -> EngineSetup:
    """Return the command with its engine's settings, which the user's own take precedence over."""
    known, setup = engine_of(engine), EngineSetup(list(command))
    share = share_of(lease.devices)
    if share is None:
        setup.remarks.append(f"nothing bounds {engine}: the pool does not know the GPU's memory")
        return setup
    settings = settings_of(engine, lease.devices)
    options = dict(_options(command, known))
    if known.word and known.word not in command:
        setup.remarks.append(
            f"nothing bounds {engine}: only `{engine} {known.word}` uses the GPU, and other "
            "commands ask a server that runs already"
        )
    setup.remarks += _excesses(engine, known, options, environ, share)
    own = any(name in known.takes_mb and name not in known.frees for name in options)
    if settings.flag and not own:
        _add_flag(setup, engine, settings.flag)
    for name, value in settings.env.items():
        if name == ALLOCATOR:
            names = [n for n in ALLOCATORS if "HIP" not in n or on_amd(lease.devices)]
            _limit_torch(setup, value, {n: environ[n] for n in names if environ.get(n)})
        elif mine := next((n for n in _same(name, known) if environ.get(n)), None):
            setup.remarks.append(f"{mine}={environ[mine]} is set already: left as it is")
        else:
            setup.env[name] = value
    setup.added += [f"{name}={value}" for name, value in setup.env.items()]
    if settings.flag:
        setup.env["GPU_LEASE_ENGINE_ARGS"] = " ".join(settings.flag)
    return setup


def reads_numbers_in_vain(engine: str, lease: Lease) -> str:
    """Return the remark about an engine that reads numbers where none are certain, or empty."""
    unnumbered = without_number(lease.devices)
    if not engine_of(engine).numbers or not unnumbered:
        return ""
    return (
        f"{engine} reads CUDA_VISIBLE_DEVICES as numbers, and that of {unnumbered[0].uuid} is not "
        "certain: it gets UUIDs, and may refuse them"
    )


def _add_flag(setup: EngineSetup, engine: str, flag: tuple[str, ...]) -> None:
    """Add the option at the end of the command, unless a shell would take it for itself."""
    text = " ".join(flag)
    if through := _takes_no_options(setup.words):
        setup.remarks.append(
            f"not added: {through} would take {text} for itself; write $GPU_LEASE_ENGINE_ARGS "
            f"behind the command of {engine} in it"
        )
        return
    setup.words += flag
    setup.flag = text
    setup.added.append(text)
    if script := _shell_script(setup.words):
        setup.remarks.append(f"{script} gets {text} and has to hand it on to {engine}")


def _excesses(
    engine: str,
    known: Engine,
    options: Mapping[str, str],
    environ: Mapping[str, str],
    share: Share,
) -> Iterator[str]:
    """Yield a sentence about each of the user's own settings that exceeds the lease."""
    for name in options:
        if name in known.frees:
            yield f"the command's own {name} may set by hand what bounds {engine}"
    values = {**options} | {n: environ[n] for n in known.takes_mb if environ.get(n)}
    for name, said in values.items():
        value, takes = _number(said), known.takes_mb.get(name)
        if value is None or takes is None:
            continue
        if (mb := takes(value, share)) > share.leased_mb:
            yield (
                f"the command's own {name}={said} lets {engine} take {gib(round(mb))}, and the "
                f"lease has {gib(share.leased_mb)}"
            )


def _options(command: Sequence[str], known: Engine) -> Iterator[tuple[str, str]]:
    """Yield the options of the command that concern its engine's memory, with their values."""
    names = {*known.takes_mb, *known.frees}
    for at, word in enumerate(command):
        said, equals, value = word.partition("=")
        for name in names:
            if said.startswith("-") and _alike(name, said):
                yield name, value if equals else next(iter(command[at + 1 : at + 2]), "")


def _alike(name: str, said: str) -> bool:
    """Return whether an option means this one: with dashes or underscores, or shortened."""
    name, said = name.replace("_", "-"), said.replace("_", "-")
    return said == name or (len(said) >= LEAST_LETTERS and name.startswith(said))


def _number(text: str) -> float | None:
    """Return the number that an option has; None: it is no number."""
    found = re.fullmatch(r"([\d.]+(?:e-?\d+)?)([kKmMgGtT%]?)", text.partition(",")[0].strip())
    try:
        return float(found[1]) * SUFFIXES.get(found[2], 1.0) if found and found[2] != "%" else None
    except ValueError:
        return None


def _same(name: str, known: Engine) -> tuple[str, ...]:
    """Return the variables that say the same as this one to the engine, with itself."""
    return (name, *(other for other in known.takes_mb if other.isupper() and other != name))


def _limit_torch(setup: EngineSetup, setting: str, own: Mapping[str, str]) -> None:
    """Add the limit to the user's own settings; an old PyTorch has no such setting."""
    if old := old_torch(setup.words):
        setup.remarks.append(
            f"PyTorch {old} takes no limit from its environment: call torch.cuda.memory."
            "set_per_process_memory_fraction with GPU_LEASE_MEMORY_FRACTION"
        )
        return
    name, before = next(iter(own.items()), (ALLOCATOR, ""))
    if FRACTION in before:
        setup.remarks.append(f"{name}={before} is set already: left as it is")
        return
    setup.env[name] = f"{before},{setting}" if before else setting


def _takes_no_options(command: Sequence[str]) -> str:
    """Return the shell or interpreter that would take an option at the end for itself, or empty."""
    for at, word in enumerate(command):
        name = Path(word).name
        if not (SHELLS.fullmatch(name) or PYTHONS.fullmatch(name)):
            continue
        before = ""
        for option in command[at + 1 :]:
            if re.fullmatch(r"-[A-Za-z]*c", option) or option == "--command":
                return f"{name} {option}"
            loose = name in NAMED_FIRST or WITH_VALUE.fullmatch(before)
            if not (option.startswith(("-", "+")) or loose):
                break
            before = option
    return ""


def _shell_script(command: Sequence[str]) -> str:
    """Return the shell script that is the command, or that a shell runs; empty: neither."""
    name = Path(command[0]).name
    if SHELLS.fullmatch(name):
        return next((word for word in command[1:] if not word.startswith("-")), "")
    try:
        with Path(shutil.which(command[0]) or command[0]).open("rb") as program:
            first, second = program.readline(256), program.readline(256)
    except OSError:
        return ""
    words = first[2:].decode(errors="replace").split() if first.startswith(b"#!") else []
    if second.startswith(b"'''exec'"):  # Python's, behind a path that is too long
        return ""
    return name if any(SHELLS.fullmatch(Path(word).name) for word in words) else ""
