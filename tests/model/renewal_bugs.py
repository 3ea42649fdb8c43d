"""Bugs of `renew_many` that the model must find; see `bugs`."""

from __future__ import annotations

from tests.model.planted import Bug

RENEWAL_BUGS = (
    Bug(
        "of many leases none has its fence compared",
        (("fence ~= held and fence ~= '' or row[6]", "row[6]"),),
        often="renew_many",
    ),
    Bug(
        "of many leases those are kept that were revoked",
        (("and fence ~= '' or row[6] or", "and fence ~= '' or"),),
        often="renew_many",
        seed=2621,
    ),
    Bug(
        "renewals of many do not reach their deadlines",
        (("if due[1] then call('ZADD', DEADLINES, unpack(due)) end", ""),),
        often="renew_many",
    ),
    Bug(
        "lease keys of many leases live as long as before",
        (("if call('PEXPIRE', key, left_ms) == 0 then", "if call('EXISTS', key) == 0 then"),),
        often="renew_many",
    ),
    Bug(
        "of many leases a later fence proves nothing",
        (("broker.witness(ARGV[at], fence + 0)", ""),),
        often="lose",
        seed=6127,
    ),
)
