"""Commands that would touch a GPU, judged by their words: a guard of habits, and no sandbox.

The tables below are all that is known. A program that is in none of them passes.
"""

from __future__ import annotations

import re
import shlex
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

SHELLS: Final = {"ash", "bash", "dash", "ksh", "sh", "zsh"}

OURS: Final = "gpu-broker"
"""Our own commands ask for their leases themselves."""

READ_BYTES: Final = 262_144
"""Most bytes of a script that are looked at."""

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
    try:
        parts = list(_commands(line))
    except ValueError:  # a quote that is not closed: judge by its plain words
        parts = [[word] for word in re.split(r"[^\w./=-]+", line) if word]
    return next((why for part in parts if (why := _of_words(part, folder, seen))), None)


def _commands(line: str) -> Iterator[list[str]]:
    """Yield the words of each command of a shell's line."""
    lexer = shlex.shlex(line.replace("\n", " ; "), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for word in lexer:
        if set(word) <= set("();<>|&"):
            yield words
            words = []
        else:
            words.append(word.strip("`$"))
    yield words


def _of_words(words: list[str], folder: Path, seen: set[Path]) -> str | None:
    words = _without_prefix(words)
    if not words:
        return None
    program, rest = Path(words[0]).name, words[1:]
    if program in SHELLS:
        return _of_shell(rest, folder, seen)
    if re.fullmatch(r"i?python[\d.]*|pytest", program):
        return _of_python(rest, folder)
    return None if program == OURS else _of_program(program, rest)


def _of_program(program: str, rest: list[str]) -> str | None:
    if program in PROGRAMS:
        return f"{program} computes on a GPU"
    if found := next((w for w in rest if any(x in w for x in CONTAINERS.get(program, ()))), None):
        return f"{program} hands a GPU to its container ({found})"
    if found := next((w for w in rest if w.partition("=")[0] in TOOLS.get(program, ())), None):
        return f"{program} {found} changes a GPU"
    return None


def _without_prefix(words: list[str]) -> list[str]:
    """Drop assignments, and programs that start the next one, with their options and numbers."""
    rest = list(words)
    while rest and "=" in rest[0].split("/")[0]:
        rest.pop(0)
    while rest and Path(rest[0]).name in THROUGH:
        rest.pop(0)
        while rest and re.fullmatch(r"-.*|[\w.]*=.*|\d[\d.]*[smhd]?", rest[0]):
            rest.pop(0)
    return rest


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
    for at, word in enumerate(rest):
        following = rest[at + 1] if at + 1 < len(rest) else ""
        if word == "-c":
            return _imports(following, "its code")
        if word == "-m":
            module = following.partition(".")[0]
            return f"python -m {following} computes on a GPU" if module in LIBRARIES else None
        if not word.startswith("-"):
            return _imports(_text(folder, word), word)
    return None


def _imports(text: str | None, name: str) -> str | None:
    found = _IMPORT.search(text or "")
    return f"{name} imports {found[1]}" if found else None


def _text(folder: Path, name: str) -> str | None:
    try:
        with (folder / name).open("rb") as file:
            return file.read(READ_BYTES).decode(errors="replace")
    except (OSError, ValueError):
        return None
