"""The pytest plugin of gpu-lease-broker, there for every project that has it installed.

```python
def test_analyst_gets_a_gpu(gpu_broker):
    with LeaseClient.from_env().lease("analyst", memory_mb=8192) as lease:
        assert lease.memory_mb == 8192
```

A module of its own: pytest imports it at each start, and it costs nothing until it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent_sdk.testing import TestBroker


@pytest.fixture
def gpu_broker() -> Iterator[TestBroker]:
    """Two simulated GPUs of 24 GiB on a store of their own, which the environment names."""
    from agent_sdk.testing import running_broker  # noqa: PLC0415 - see above

    with running_broker() as running, running.environment():
        yield running
