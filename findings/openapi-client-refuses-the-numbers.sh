#!/bin/sh
# openapi-python-client makes of a field that is a whole number or the word "cpu" (anyOf of an integer and a constant, as
# pydantic describes `int | Literal["cpu"]`) a class that refuses every number: it compares with the constant whatever comes.
# With the same word as a string of a pattern (anyOf of an integer and a string) it takes both.
# Seen with openapi-python-client 0.29.1: constant: 'cpu' read, 0 refused; pattern: both read.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check openapi-python-client==0.29.1
cd "$work"
cat > document.json <<'JSON'
{"openapi": "3.1.0", "info": {"title": "pool", "version": "1"}, "paths": {"/lease": {"get": {
  "operationId": "getLease", "responses": {"200": {"description": "both forms", "content": {"application/json": {
    "schema": {"anyOf": [{"$ref": "#/components/schemas/Constant"}, {"$ref": "#/components/schemas/Pattern"}]}}}}}}}},
 "components": {"schemas": {
  "Constant": {"type": "object", "required": ["gpu"], "properties": {
    "gpu": {"anyOf": [{"type": "integer"}, {"type": "string", "const": "cpu"}]}}},
  "Pattern": {"type": "object", "required": ["gpu"], "properties": {
    "gpu": {"anyOf": [{"type": "integer"}, {"type": "string", "pattern": "^cpu$"}]}}}}}}
JSON
PATH="$work/venv/bin:$PATH" openapi-python-client generate --path document.json --meta none --output-path made > generated.txt
"$work/venv/bin/python" - <<'PYTHON'
import sys
from made.models import Constant, Pattern

def told(kind: type, gpu: object) -> str:
    try:
        return f"{kind.from_dict({'gpu': gpu}).gpu!r} read"
    except ValueError as error:
        return f"{gpu!r} refused" if "const" in str(error) else repr(error)

seen = {kind.__name__.lower(): [told(kind, gpu) for gpu in ("cpu", 0)] for kind in (Constant, Pattern)}
print("; ".join(f"{name}: {', '.join(said)}" for name, said in seen.items()))
sys.exit(seen != {"constant": ["'cpu' read", "0 refused"], "pattern": ["'cpu' read", "0 read"]})
PYTHON
