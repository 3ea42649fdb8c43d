"""Bugs of brief reports that the model must find; see `bugs`."""

from __future__ import annotations

from tests.model.planted import Bug

REPORT_BUGS = (
    Bug(
        "a brief report leaves what is withheld",
        (("or withheld_mb ~= '0' or (raised_mb", "or (raised_mb"),),
        often="haunt",
        seed=6641,
    ),
    Bug(
        "a brief report leaves what is unleased",
        (("if said.reported_unleased_mb ~= unleased_mb then return false end", ""),),
        often="change",
        seed=4625,
    ),
    Bug(
        "a brief report by the driver's sum alone leaves what is unleased",
        (
            (
                "elseif not used_mb or mb > used_mb or mb < used_mb - leased_mb then",
                "elseif false then",
            ),
        ),
        often="change",
    ),
    Bug(
        "a brief report leaves a device where it was",
        (
            ("if on ~= host or state ~= said.state or withheld_mb", "if withheld_mb"),
            ("said.plain and (of == 'number' or broker.PLAIN[field])", "said.plain"),
        ),
        often="change",
    ),
)
