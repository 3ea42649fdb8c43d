"""Commands that would touch a GPU, judged by their words: a guard of habits, and no sandbox.

The tables below are all that is known. A program that is in none of them passes.
"""

from __future__ import annotations

import re
import shlex
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LIBRARIES: Final = (
    "accelerate", "cupy", "deepspeed", "diffusers", "jax", "lightning", "numba.cuda",
    "pytorch_lightning", "sentence_transformers", "sglang", "tensorflow", "torch", "transformers",
    "triton", "vllm",
)  # fmt: skip
"""Modules of Python that open a GPU by themselves where there is one."""

PROGRAMS: Final = {
    "accelerate", "comfy", "deepspeed", "llama-cli", "llama-server", "ncu", "nsys", "ollama",
    "sglang", "torchrun", "tritonserver", "trtllm-serve", "vllm",
}  # fmt: skip
"""Programs that compute on a GPU."""

CONTAINERS: Final = {
    "docker": ("--gpus", "--runtime=nvidia", "nvidia.com/gpu", "/dev/nvidia"),
    "podman": ("--gpus", "nvidia.com/gpu", "/dev/nvidia"),
    "nerdctl": ("--gpus", "nvidia.com/gpu"),
    "apptainer": ("--nv", "--nvccli", "--rocm"),
    "singularity": ("--nv", "--nvccli", "--rocm"),
}
"""Engines of containers, with the beginnings of the words by which they hand a GPU in."""

TOOLS: Final = {
    "nvidia-smi": ("-r", "--gpu-reset", "-pm", "--persistence-mode", "-pl", "--power-limit", "-mig",
                   "--multi-instance-gpu", "-c", "--compute-mode", "-lgc", "--lock-gpu-clocks"),
    "rocm-smi": ("--gpureset", "--setpoweroverdrive", "--setperflevel"),
    "amd-smi": ("set", "reset"),
}  # fmt: skip
"""Tools that only read, with the words by which they change a GPU."""

THROUGH: Final = {
    "doas", "env", "exec", "ionice", "nice", "nohup", "pixi", "poetry", "run", "setsid", "stdbuf",
    "sudo", "time", "timeout", "uv",
}  # fmt: skip
"""Words before the command itself."""

KEYWORDS: Final = {"!", "do", "elif", "else", "if", "then", "until", "while", "{"}
"""Words of a shell's grammar behind which a command stands."""

SHELLS: Final = {"ash", "bash", "dash", "ksh", "sh", "zsh"}

OURS: Final = "gpu-broker"
"""Our own commands ask for their leases themselves."""

READ_BYTES: Final = 262_144
"""Most bytes of a script that are looked at."""

_OPTION: Final = re.compile(r"-.*|[\w.]*=.*|\d[\d.]*[smhd]?")
"""Options, assignments and times between a program and the one that it starts."""

_UNREAD: Final = re.compile(
    r"""('[^']*'|"(?:\\.|[^"\\])*"|\\[^\n])|\\\n|(?<![^\s;|&()])#[^\n]*""", re.DOTALL
)
"""Comments and continued line ends, which a shell does not read; quotes are in the group."""

_BETWEEN: Final = "();<>|&\n"
"""Characters that end a command, or redirect it."""

_LEASES: Final = re.compile(r"""\beval\s+"?(?:\$\(|`)\s*[\w./-]*gpu-broker\s+acquire\s""")
"""Beginning of a lease for the shell: what follows runs under it."""

_IMPORT: Final = re.compile(
    r"(?:^|[;\n])\s*(?:import|from)\s+(" + "|".join(map(re.escape, LIBRARIES)) + r")\b"
)


def touched_by(command: str | Sequence[str], folder: Path | None = None) -> str | None:
    """Return the reason for which a command touches a GPU; None: nothing known says so.

    Args:
        command: a line for a shell, or the words of one command.
        folder: the folder in which it runs; default this one.
    """
    folder, seen = folder or Path(), set[Path]()
    if not isinstance(command, str):
        return _of_words(list(command), folder, seen)
    return _of_line(command, folder, seen)


def _of_line(line: str, folder: Path, seen: set[Path]) -> str | None:
    """Judge a line for a shell, or a script; `seen`: the scripts that are judged already."""
    line = _LEASES.split(_UNREAD.sub(r"\1", line), maxsplit=1)[0]
    try:
        parts = list(_commands(line))
    except ValueError:  # a quote that is not closed: judge by its plain words
        parts = [[word] for word in re.split(r"[^\w./=-]+", line) if word]
    for part in parts:
        if why := _of_words(part, folder, seen):
            return why
        folder = _after(part, folder)
    return None


def _after(words: list[str], folder: Path) -> Path:
    """Return the folder in which the next command runs: `cd` may have left this one."""
    if words[:1] != ["cd"] or len(words) != len(("cd", "folder")):
        return folder
    with suppress(OSError, RuntimeError, ValueError):
        there = folder / Path(words[1]).expanduser()
        return there if there.is_dir() else folder
    return folder


def _commands(line: str) -> Iterator[list[str]]:
    """Yield the words of each command of a shell's line."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=_BETWEEN)
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t\r", True, ""
    words: list[str] = []
    for word in lexer:
        if set(word) <= set(_BETWEEN):
            yield words
            words = []
        else:
            words.append(word.strip("`$"))
    yield words


def _of_words(words: list[str], folder: Path, seen: set[Path]) -> str | None:
    readings = (each for each in _without_prefix(words) if each)
    return next((why for each in readings if (why := _of_command(each, folder, seen))), None)


def _of_command(words: list[str], folder: Path, seen: set[Path]) -> str | None:
    program, rest = Path(words[0]).name, words[1:]
    if program in SHELLS:
        return _of_shell(rest, folder, seen)
    if program == "pytest":
        return _of_tests(rest, folder)
    if re.fullmatch(r"i?python[\d.]*", program):
        return _of_python(rest, folder)
    return None if program == OURS else _of_program(program, rest)


def _of_program(program: str, rest: list[str]) -> str | None:
    if program in PROGRAMS:
        return f"{program} computes on a GPU"
    if marks := CONTAINERS.get(program):
        found = next((word for word in rest if any(mark in word for mark in marks)), None)
        return found and f"{program} hands a GPU to its container ({found})"
    if changes := TOOLS.get(program):
        found = next((word for word in rest if word.partition("=")[0] in changes), None)
        return found and f"{program} {found} changes a GPU"
    return None


def _without_prefix(words: list[str]) -> Iterator[list[str]]:
    """Yield the command behind keywords, assignments, and programs that start it.

    More than one, where the last option of such a program may have taken the next word.
    """
    rest, behind = list(words), False
    while rest and rest[0] in KEYWORDS:
        rest.pop(0)
    while True:
        last = ""
        while rest and ("=" in rest[0].split("/")[0] or (behind and _OPTION.fullmatch(rest[0]))):
            last = rest.pop(0)
        if not rest or Path(rest[0]).name not in THROUGH:
            yield list(rest)
            if not rest[1:] or not last.startswith("-"):
                return
        behind = True
        rest.pop(0)


def _of_shell(rest: list[str], folder: Path, seen: set[Path]) -> str | None:
    for at, word in enumerate(rest):
        if re.fullmatch(r"-\w*c", word):
            return _of_line(rest[at + 1], folder, seen) if at + 1 < len(rest) else None
    script = next((word for word in rest if not word.startswith("-")), None)
    if script is None or (path := folder / script) in seen:  # scripts may call themselves
        return None
    seen.add(path)
    text = _text(folder, script)
    return _of_line(text, folder, seen) if text else None


def _of_python(rest: list[str], folder: Path) -> str | None:
    at = 0
    while at < len(rest):
        word, following = rest[at], rest[at + 1] if at + 1 < len(rest) else ""
        if re.fullmatch(r"-[A-Za-z]*c", word):
            return _imports(following, "its code")
        if re.fullmatch(r"-[A-Za-z]*m", word):
            return _of_module(following, rest[at + 2 :], folder)
        if not word.startswith("-"):
            return _imports(_text(folder, word), word)
        at += 2 if re.fullmatch(r"-[A-Za-z]*[WX]|--check-hash-based-pycs", word) else 1
    return None


def _of_module(module: str, rest: list[str], folder: Path) -> str | None:
    if module == "pytest":
        return _of_tests(rest, folder)
    known = module.partition(".")[0] in LIBRARIES
    return f"python -m {module} computes on a GPU" if known else None


def _of_tests(rest: list[str], folder: Path) -> str | None:
    """Judge the files that pytest is given; values of its options are none."""
    files = (word.partition("::")[0] for word in rest if not word.startswith("-"))
    return next((why for file in files if (why := _imports(_text(folder, file), file))), None)


def _imports(text: str | None, name: str) -> str | None:
    found = _IMPORT.search(text or "")
    return f"{name} imports {found[1]}" if found else None


def _text(folder: Path, name: str) -> str | None:
    try:
        with (folder / name).open("rb") as file:
            return file.read(READ_BYTES).decode(errors="replace")
    except (OSError, ValueError):
        return None
