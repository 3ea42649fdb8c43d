"""Strategies for values that a server may answer."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary()
    | st.sampled_from((10**400, -(10**400), "9" * 5000, "no_capacity", "expired", "bad_request"))
)  # fmt: skip
"""Values that RESP2 and RESP3 can hold in one place, a big number and an infinity among them."""


NESTED = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.text(max_size=3), inner, max_size=2)
        | st.sets(st.integers(), max_size=2)
    ),
    max_leaves=8,
)


QUIET = settings(
    max_examples=int(os.environ.get("GPU_BROKER_FUZZ", "40")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
