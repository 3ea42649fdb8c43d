"""Commands as bytes for the wire. Of a verb's call, all but token and mark is made once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from agent_sdk.protocol.marks import mark_of, new_mark

if TYPE_CHECKING:
    from agent_sdk.protocol.messages import Call

MOST_FRAMES: Final = 512
"""Most frames that are kept; a wait makes a new one for each poll."""


class Packed(NamedTuple):
    """Command as bytes, with the mark that its reply repeats."""

    data: bytes
    mark: str


def packed(command: tuple[Any, ...]) -> Packed:
    """Return a command as bytes, with the mark that it carries."""
    text = f"*{len(command)}\r\n{''.join(map(_word, command))}"
    return Packed(text.encode(), mark_of(command))


class Frames:
    """Frames of one kind of call: FCALL or EVALSHA.

    A frame is a command's text before the mark, and after the token.

    Args:
        base: the pool's base key, `KEYS[1]` of each verb.
    """

    def __init__(self, base: str) -> None:
        self._base = base
        self._known: dict[tuple[Any, ...], tuple[str, str]] = {}

    def pack(self, kind: str, name: str, call: Call) -> Packed:
        """Return a token's call as bytes, with a new mark.

        Args:
            kind: FCALL or EVALSHA.
            name: the function, or the script's digest.
            call: its first arguments are the protocol and the token.
        """
        args = call.args
        token, key = args[1], (name, args[2:])
        frame = self._known.get(key)
        if frame is None:
            frame = self._make(kind, name, args[2:])
            if len(self._known) >= MOST_FRAMES:
                self._known = {}
            self._known[key] = frame
        head, tail = frame
        mark = new_mark()
        said = f"{args[0]} {mark}"
        text = f"{head}${len(said)}\r\n{said}\r\n${len(token)}\r\n{token}\r\n{tail}"  # type: ignore[arg-type] # a token is ASCII
        return Packed(text.encode(), mark)

    def _make(self, kind: str, name: str, rest: tuple[str | int, ...]) -> tuple[str, str]:
        words = (kind, name, 1, self._base)
        return (
            f"*{len(words) + 2 + len(rest)}\r\n{''.join(map(_word, words))}",
            "".join(map(_word, rest)),
        )


def _word(word: object) -> str:
    """Return one word of a command in Redis's protocol; its length counts bytes."""
    text = str(word)
    return f"${len(text.encode())}\r\n{text}\r\n"
