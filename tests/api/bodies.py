"""Bodies of requests that are none, by what is wrong with them."""

BODIES = {
    "empty": b"",
    "blank": b" \n",
    "cut off": b'{"agent": "a"',
    "trailing": b'{"agent": "a"} x',
    "null": b"null",
    "list": b'["agent"]',
    "string": b'"agent"',
    "number": b"5",
    "NaN": b"NaN",
    "no fields": b"{}",
    "not UTF-8": b'{"agent": "\xff\xfe"}',
    "zeros": bytes(100),
    "form": b"agent=a&min_memory_mb=1&token=aaaaaaaaaaaaaaaa",
    "deep": b'{"agent": ' + b"[" * 8000 + b"]" * 8000 + b"}",
    "long number": b'{"agent": "a", "min_memory_mb": ' + b"9" * 5000 + b"}",
    "surrogate as a key": b'{"\\ud800": 1}',
}
