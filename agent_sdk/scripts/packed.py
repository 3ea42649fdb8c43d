"""Commands as bytes for the wire. Of a verb's call, all but token and mark is made once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from agent_sdk.protocol.marks import MARK_DIGITS, mark_of, new_mark

if TYPE_CHECKING:
    from typing import TypeAlias

    from agent_sdk.protocol.messages import Call

    Packed: TypeAlias = tuple[bytes, str]
    """Command as bytes, with the mark that its reply repeats."""

MOST_FRAMES: Final = 512
"""Most frames that are kept; a wait makes a new one for each poll."""


def packed(command: tuple[Any, ...]) -> Packed:
    """Return a command as bytes, with the mark that it carries."""
    text = f"*{len(command)}\r\n{''.join(map(_word, command))}"
    return text.encode(), mark_of(command)


class Frames:
    """Frames of one kind of call: FCALL or EVALSHA.

    A frame is a command's text before the mark, between mark and token, and after the token.

    Args:
        base: the pool's base key, `KEYS[1]` of each verb.
    """

    def __init__(self, base: str) -> None:
        self._base = base
        self._known: dict[tuple[Any, ...], tuple[str, str, str]] = {}

    def pack(self, kind: str, name: str, call: Call) -> Packed:
        """Return a token's call as bytes, with a new mark.

        Args:
            kind: FCALL or EVALSHA.
            name: the function, or the script's digest.
            call: its first arguments are the protocol and the token.
        """
        protocol, token, *rest = call.args
        size = len(token)  # type: ignore[arg-type] # it is a text, of ASCII
        key = (name, protocol, size, *rest)
        frame = self._known.get(key)
        if frame is None:
            frame = self._make((kind, name, 1, self._base), protocol, size, rest)
            if len(self._known) >= MOST_FRAMES:
                self._known = {}
            self._known[key] = frame
        head, between, tail = frame
        mark = new_mark()
        return f"{head}{mark}{between}{token}{tail}".encode(), mark

    @staticmethod
    def _make(
        words: tuple[str | int, ...], protocol: str | int, size: int, rest: list[str | int]
    ) -> tuple[str, str, str]:
        head = f"*{len(words) + 2 + len(rest)}\r\n{''.join(map(_word, words))}"
        said = f"{protocol} "
        return (
            f"{head}${len(said) + MARK_DIGITS}\r\n{said}",
            f"\r\n${size}\r\n",
            "\r\n" + "".join(map(_word, rest)),
        )


def _word(word: object) -> str:
    """Return one word of a command in Redis's protocol; its length counts bytes."""
    text = str(word)
    return f"${len(text.encode())}\r\n{text}\r\n"
