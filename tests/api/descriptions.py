"""Description of the API, to hold answers to it."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from jsonschema_rs import validator_for

if TYPE_CHECKING:
    from collections.abc import Mapping

    import httpx2


class Description:
    """The document, read strictly: a type has its properties, and no other."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._paths = document["paths"]
        self._components = copy.deepcopy(document["components"])
        for name, schema in self._components["schemas"].items():
            if "properties" in schema and name != "Problem":
                schema["additionalProperties"] = False

    def faults(self, body: Any, content: Mapping[str, Any]) -> list[str]:
        """Everything in a body that the schema of its content does not say."""
        check = validator_for(content["schema"] | {"components": self._components})
        return [f"{fault.instance_path}: {fault.message}" for fault in check.iter_errors(body)]

    def check(self, answer: httpx2.Response, path: str, status: int = 200) -> Any:
        """Return an answer's body; it must be of the described type."""
        assert answer.status_code == status, answer.text
        method = answer.request.method.lower()
        content = self._paths[path][method]["responses"][str(status)]["content"]
        body = answer.json()
        assert not self.faults(body, content[answer.headers["content-type"]]), body
        return body
