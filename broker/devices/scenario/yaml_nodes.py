"""Nodes of a YAML file; each knows its line and checks its own type."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from broker.devices.sample import text

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

_NO_YAML = "PyYAML is not installed: pip install 'gpu-lease-broker[broker]'"


class ScenarioError(ValueError):
    """Error of an invalid file; one sentence gives the reason and the line."""


class YamlNode:
    """Node of the file.

    Args:
        node: PyYAML's.
        value_of: makes a plain value of a scalar node.
        what: the node's name in messages.
    """

    def __init__(self, node: Any, value_of: Callable[[Any], Any], what: str) -> None:
        self._node = node
        self._value_of = value_of
        self.what = what

    def wrong(self, why: str) -> ScenarioError:
        """Return an error about this node; `why` continues the sentence after its name."""
        return ScenarioError(f"line {self._node.start_mark.line + 1}: {self.what} {why}")

    def mapping(self, fields: Collection[str]) -> dict[str, YamlNode]:
        """Return the node's fields by name; each is one of `fields`.

        Raises:
            ScenarioError: it is no mapping, or has another field, or one twice.
        """
        if self._node.id != "mapping":
            raise self.wrong("must be a mapping, name: value")
        found: dict[str, YamlNode] = {}
        for key, value in self._node.value:
            name = text(key.value) if key.id == "scalar" else ""
            part = YamlNode(value, self._value_of, name)
            if name not in fields:
                part = YamlNode(key, self._value_of, self.what)
                raise part.wrong(f"has no field {name[:40]!r}: it may have {', '.join(fields)}")
            if name in found:
                raise part.wrong("is there twice")
            found[name] = part
        return found

    def entries(self) -> list[tuple[YamlNode, YamlNode]]:
        """Return the node's names and values in order, each value called by its name.

        Raises:
            ScenarioError: it is no mapping, or has a name twice.
        """
        if self._node.id != "mapping":
            raise self.wrong("must be a mapping, name: value")
        names = [text(key.value) if key.id == "scalar" else "" for key, _ in self._node.value]
        for at, (key, _) in enumerate(self._node.value):
            if names[at] in names[:at]:
                raise YamlNode(key, self._value_of, names[at]).wrong("is there twice")
        return [
            (YamlNode(key, self._value_of, name), YamlNode(value, self._value_of, name))
            for name, (key, value) in zip(names, self._node.value, strict=True)
        ]

    @property
    def is_mapping(self) -> bool:
        """True for name: value."""
        return bool(self._node.id == "mapping")

    def items(self, what: str, most: int) -> list[YamlNode]:
        """Return the node's items in order, each called `what`.

        Raises:
            ScenarioError: it is no list, or longer than `most`.
        """
        if self._node.id != "sequence":
            raise self.wrong("must be a list")
        if len(self._node.value) > most:
            raise self.wrong(f"has more than {most} entries")
        return [YamlNode(node, self._value_of, what) for node in self._node.value]

    @property
    def null(self) -> bool:
        """True if the value is null, which means unknown."""
        return bool(self._node.tag == "tag:yaml.org,2002:null")

    def words(self) -> str:
        """Return the value as one line of printable ASCII.

        Raises:
            ScenarioError: it is no text, or longer than 256.
        """
        if self._node.id != "scalar" or self.null:
            raise self.wrong("must be text")
        words = text(self._node.value)
        if len(words) > 256:  # noqa: PLR2004 - lua/report.lua's limit
            raise self.wrong("must have at most 256 letters")
        return words

    def number(self, low: float, high: float) -> float:
        """Return the value as a number within [low, high].

        Raises:
            ScenarioError: it is none.
        """
        value = self._value()
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.wrong("must be a number")
        if not low <= value <= high:
            raise self.wrong(f"must be {low:.15g} to {high:.15g}")
        return float(value)

    def whole(self, low: int, high: int) -> int:
        """Return the value as a whole number within [low, high].

        Raises:
            ScenarioError: it is none.
        """
        value = self._value()
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong("must be a whole number")
        if not low <= value <= high:
            raise self.wrong(f"must be {low} to {high}")
        return value

    def flag(self) -> bool:
        """Return the value as true or false.

        Raises:
            ScenarioError: it is neither.
        """
        value = self._value()
        if not isinstance(value, bool):
            raise self.wrong("must be true or false")
        return value

    def _value(self) -> object:
        if self._node.id != "scalar":
            return None
        try:
            value: object = self._value_of(self._node)
        except (ValueError, OverflowError) as error:
            raise self.wrong("cannot be read") from error
        return value


def told_by(content: str, what: str) -> YamlNode:
    """Return the root node of a file's content.

    Raises:
        ScenarioError: it is empty or no YAML, or PyYAML is missing.
    """
    try:
        yaml = importlib.import_module("yaml")
    except ImportError as error:
        raise ScenarioError(_NO_YAML) from error
    try:
        loader = yaml.SafeLoader(content)
        node = loader.get_single_node()
    except RecursionError as error:
        raise ScenarioError("it is nested too deeply") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark is not None else ""
        why = getattr(error, "problem", None) or getattr(error, "reason", None) or error
        raise ScenarioError(f"{line}it is no YAML: {text(why)[:160]}") from error
    if node is None:
        raise ScenarioError("it is empty")
    return YamlNode(node, loader.construct_object, what)
