"""Policy of a pool: the one declaration of its fields, for all that shows, takes or checks them.

Lua has its own literal table, in `set_policy.lua` and `report.lua`; a test compares both.
"""

from __future__ import annotations

import re
from dataclasses import Field, dataclass, field, fields
from operator import index
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, TypedDict

from agent_sdk.errors import error_for

if TYPE_CHECKING:
    from collections.abc import Mapping

Kind: TypeAlias = Literal["flag", "number", "action", "memory_limit", "xid_actions", "prices"]

Action: TypeAlias = Literal["observe", "notify", "enforce"]

ACTIONS: Final[dict[str, str]] = {
    "observe": "it is shown",
    "notify": "the holder is told, and the host logs it",
    "enforce": "the lease is revoked; a process is ended, if its reporter may do so",
}
"""Actions of hosts after a finding."""

MemoryLimit: TypeAlias = Literal["off", "where_possible", "required"]

MEMORY_LIMITS: Final[dict[str, str]] = {
    "off": "no limit is set, except where a command asks for it",
    "where_possible": "gpu-broker run has the driver limit its command, where the host can",
    "required": "gpu-broker run starts no command that the driver does not limit",
}
"""Words of the policy about limits of memory that the driver enforces."""

WORDS: Final[dict[str, dict[str, str]]] = {"action": ACTIONS, "memory_limit": MEMORY_LIMITS}
"""Words that a field takes, with their meanings, by its kind."""

MOST_MB: Final = 10**13 - 1
"""Largest number: as many digits as the verbs read."""

DAY_S: Final = 86_400
WEEK_S: Final = 7 * DAY_S
TEN_YEARS_S: Final = 3650 * DAY_S

XID_ACTION: Final = r"[0-9]{1,4}=(ignore|suspect|probe|hold)"

XID_ACTIONS: Final = re.compile(rf"({XID_ACTION}(,{XID_ACTION})*)?")

XID_LENGTH: Final = 256
"""Most letters of all `xid_actions` together."""

PRICE: Final = r"([A-Za-z0-9._ -]{1,64}|\*)=[0-9]{1,6}(\.[0-9]{1,4})?"

PRICES: Final = re.compile(rf"({PRICE}(,{PRICE})*)?")

PRICES_LENGTH: Final = 512
"""Most letters of all prices together."""

LISTS: Final[dict[str, tuple[re.Pattern[str], int, str]]] = {
    "xid_actions": (
        XID_ACTIONS, XID_LENGTH, "as 31=suspect,79=hold (ignore, suspect, probe or hold), or empty"
    ),
    "prices": (
        PRICES, PRICES_LENGTH, "as NVIDIA H200=3.2,*=1 (by model, * for others), or empty"
    ),
}  # fmt: skip
"""Kinds whose values are lists: the form of one, its most letters, the form in words."""


@dataclass(frozen=True, slots=True)
class PolicyField:
    """Field of the policy.

    Attributes:
        kind: `flag`: true or false; `number`: from `least` to `most`; `action` and
            `memory_limit`: a word of `WORDS`; `xid_actions`: `code=action` by commas; `prices`:
            `model=price` by commas.
        default: its value in a new pool.
        label: its name on a form, with the unit of a number.
        meaning: its effect, for documentation.
    """

    name: str
    kind: Kind
    default: bool | int | str
    label: str
    meaning: str
    least: int = 0
    most: int = 0

    @property
    def accepts(self) -> str:
        """Accepted values, in words."""
        if self.kind == "flag":
            return "true or false"
        if self.kind == "number":
            return f"{self.least} to {self.most}"
        if self.kind in WORDS:
            return ", ".join(WORDS[self.kind])
        return LISTS[self.kind][2]

    def from_store(self, text: str | None) -> bool | int | str:
        """Return a value by its text in the store; None: it has none, so the default holds."""
        if text is None:
            return self.default
        if self.kind == "flag":
            return text == "1"
        return int(text) if self.kind == "number" else text

    def to_store(self, value: object) -> int | str:
        """Return a value in the verb's form.

        Raises:
            BadRequest: the field takes no such value; the message names the accepted ones.
        """
        number = _whole(value)
        if self.kind == "flag" and number in {0, 1}:
            return number
        if self.kind == "number" and number is not None and not isinstance(value, bool):
            if self.least <= number <= self.most:
                return number
        elif isinstance(value, str) and self._is_word(value):
            return str.__str__(value)  # of an enum's member too
        raise error_for("bad_request", f"{self.name} must be {self.accepts}, not {value!r:.80}")

    def _is_word(self, value: str) -> bool:
        if self.kind in WORDS:
            return value in WORDS[self.kind]
        if self.kind not in LISTS:
            return False
        form, longest, _ = LISTS[self.kind]
        return len(value) <= longest and form.fullmatch(value) is not None


def _whole(value: object) -> int | None:
    """Return a whole number, numpy's and an enum's too; None: it is no whole number."""
    try:
        return index(value)  # type: ignore[arg-type] # it raises TypeError for others
    except TypeError:
        return None


def _flag(label: str, meaning: str, *, default: bool) -> Any:
    return field(default=default, metadata={"kind": "flag", "label": label, "meaning": meaning})


def _number(label: str, meaning: str, *, default: int, least: int, most: int) -> Any:
    metadata = {"kind": "number", "label": label, "meaning": meaning, "least": least, "most": most}
    return field(default=default, metadata=metadata)


def _word(label: str, meaning: str, *, kind: Kind, default: str) -> Any:
    return field(default=default, metadata={"kind": kind, "label": label, "meaning": meaning})


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyValues:
    """Values of a pool's policy, each with its default; `FIELDS` has more about each."""

    safe_mode: bool = _flag(
        "SAFE_MODE",
        "No GPU leases, and nothing else can be set while it is on.",
        default=False,
    )
    max_memory_per_agent_mb: int = _number(
        "Most memory that one agent may hold, MiB",
        "MiB that all leases of one agent may hold together.",
        default=1_048_576, least=256, most=MOST_MB,
    )  # fmt: skip
    allow_fractional_shares: bool = _flag(
        "GPUs may be shared", "False: every lease takes whole devices.", default=True
    )
    kill_on_oom: bool = _flag(
        "Over-using processes may be ended",
        "A process that uses more than its lease holds may be ended before its neighbours die.",
        default=False,
    )
    default_memory_mb: int = _number(
        "Memory of a lease that names none, MiB",
        "MiB of a lease that names no size.",
        default=2048, least=1, most=MOST_MB,
    )  # fmt: skip
    expiry_grace_s: int = _number(
        "Memory of an expired lease is withheld for, s",
        "Seconds for which the memory of an expired lease is withheld on real devices.",
        default=5, least=0, most=3600,
    )  # fmt: skip
    max_leases_per_agent: int = _number(
        "Most leases of one agent",
        "Leases that one agent may hold; a limit against a runaway client.",
        default=256, least=1, most=1_000_000,
    )  # fmt: skip
    max_waiters_per_agent: int = _number(
        "Most places in the queue of one agent",
        "Places in the queue that one agent may have; a limit against a runaway client.",
        default=256, least=1, most=1_000_000,
    )  # fmt: skip
    idle_action: str = _word(
        "A lease that idles",
        "Done about a lease whose holder does nothing on its GPU.",
        kind="action", default="observe",
    )  # fmt: skip
    overuse_action: str = _word(
        "A lease that uses more than it holds",
        "Done about a lease whose processes use more memory than it holds.",
        kind="action", default="observe",
    )  # fmt: skip
    squatter_action: str = _word(
        "A process without a lease",
        "Done about a process on a GPU that has no lease there.",
        kind="action", default="observe",
    )  # fmt: skip
    orphan_action: str = _word(
        "A process of a lease that is over",
        "Done about a process whose lease has ended.",
        kind="action", default="observe",
    )  # fmt: skip
    idle_after_s: int = _number(
        "A lease idles when it has done nothing for, s",
        "Seconds without work after which a lease is idle.",
        default=600, least=10, most=WEEK_S,
    )  # fmt: skip
    enforce_after_s: int = _number(
        "What is enforced comes after another, s",
        "Seconds from a finding to its end, where that is enforced.",
        default=60, least=0, most=DAY_S,
    )  # fmt: skip
    overuse_slack_mb: int = _number(
        "Memory that a lease may use beyond what it holds, MiB",
        "MiB by which a lease may use more than it holds.",
        default=512, least=0, most=MOST_MB,
    )  # fmt: skip
    idle_foreign_mb: int = _number(
        "Memory that others may use on a GPU that is leased whole, MiB",
        "MiB that a desktop or other processes without a lease may use on a GPU that still counts "
        "as unused, so that it is leased whole; with the next report of each host.",
        default=512, least=0, most=MOST_MB,
    )  # fmt: skip
    xid_actions: str = _word(
        "What errors of a GPU mean, as 31=suspect,79=hold; empty: NVIDIA's table",
        "Meanings of NVIDIA's error codes that go before NVIDIA's own table.",
        kind="xid_actions", default="",
    )  # fmt: skip
    memory_limit: str = _word(
        "Memory that the driver limits",
        "Limits of GPU memory that the driver enforces on the commands of gpu-broker run.",
        kind="memory_limit", default="off",
    )  # fmt: skip
    mps_thread_share: bool = _flag(
        "Under MPS a share of the threads goes with the memory",
        "True: commands get MPS's thread percentage by their share of the GPU's memory.",
        default=False,
    )
    half_life_s: int = _number(
        "Past use of a team counts half after, s; 0: for ever",
        "Seconds after which half of what a team has used is forgotten, among teams with a policy; "
        "0: none ever is.",
        default=WEEK_S, least=0, most=TEN_YEARS_S,
    )  # fmt: skip
    reclaim_after_s: int = _number(
        "Leases are taken back for one with a right to their memory after, s; 0: none ever is",
        "Seconds that a head waits for what is its team's own before leases of others are noticed "
        "to end; 0: none ever is.",
        default=60, least=0, most=WEEK_S,
    )  # fmt: skip
    min_runtime_s: int = _number(
        "A lease is not preempted before it has run for, s",
        "Seconds after its grant in which a lease is not preempted, unless it was taken as "
        "preemptible; twice as long for each time that its job was preempted before.",
        default=300, least=0, most=WEEK_S,
    )  # fmt: skip
    preempt_grace_s: int = _number(
        "A lease that is preempted has, s",
        "Seconds from the notice to the end of a lease that is preempted.",
        default=60, least=1, most=DAY_S,
    )  # fmt: skip
    reservation_idle_s: int = _number(
        "GPUs reserved for one that waits may go unused for, s; 0: none is reserved",
        "Seconds for which GPUs reserved for a waiter may go unused; 0: none is reserved.",
        default=60, least=0, most=WEEK_S,
    )  # fmt: skip
    forget_devices_after_s: int = _number(
        "A GPU that its host lists no more is forgotten after, s",
        "Seconds after which a device without a lease leaves the pool when its host lists it no "
        "more.",
        default=3600, least=10, most=TEN_YEARS_S,
    )  # fmt: skip
    forget_hosts_after_s: int = _number(
        "A host that is silent is forgotten after, s",
        "Seconds of silence after which a host without a lease leaves the pool.",
        default=DAY_S, least=60, most=TEN_YEARS_S,
    )  # fmt: skip
    usage_days: int = _number(
        "Use is remembered for, days",
        "Days for which the sums of each day's use are kept; what is written later on a day sets "
        "that day's time anew.",
        default=400, least=1, most=3650,
    )  # fmt: skip
    history_leases: int = _number(
        "Finished leases that are remembered, about",
        "Finished leases of which each is remembered; a few more may be, for speed.",
        default=10_000, least=0, most=1_000_000,
    )  # fmt: skip
    price_per_gpu_hour: str = _word(
        "Price of a GPU for an hour, as NVIDIA H200=3.2,*=1; empty: none is shown",
        "Prices of an hour of a whole GPU by model, for reports of use; a share costs its part. "
        "Without a currency: reports show the number.",
        kind="prices", default="",
    )  # fmt: skip


class Policy(TypedDict, total=False):
    """Fields that an operator may set, for type checkers; `PolicyValues` describes them."""

    safe_mode: bool
    max_memory_per_agent_mb: int
    allow_fractional_shares: bool
    kill_on_oom: bool
    default_memory_mb: int
    expiry_grace_s: int
    max_leases_per_agent: int
    max_waiters_per_agent: int
    idle_action: str
    overuse_action: str
    squatter_action: str
    orphan_action: str
    idle_after_s: int
    enforce_after_s: int
    overuse_slack_mb: int
    idle_foreign_mb: int
    xid_actions: str
    memory_limit: str
    mps_thread_share: bool
    half_life_s: int
    reclaim_after_s: int
    min_runtime_s: int
    preempt_grace_s: int
    reservation_idle_s: int
    forget_devices_after_s: int
    forget_hosts_after_s: int
    usage_days: int
    history_leases: int
    price_per_gpu_hour: str


def _declared(of: Field[Any]) -> PolicyField:
    default: Any = of.default
    return PolicyField(name=of.name, default=default, **of.metadata)


FIELDS: Final[dict[str, PolicyField]] = {x.name: _declared(x) for x in fields(PolicyValues)}
"""Fields of the policy by name."""


def from_store(row: Mapping[str, str]) -> dict[str, Any]:
    """Return the value of every field, as the pool's hash has it."""
    return {name: of.from_store(row.get(name)) for name, of in FIELDS.items()}


def to_store(changes: Mapping[str, object]) -> list[str | int]:
    """Return changes in the verb's form: names and values in turn.

    Raises:
        BadRequest: there is no such field, or it takes no such value.
    """
    words: list[str | int] = []
    for name, value in changes.items():
        if name not in FIELDS:
            raise error_for(
                "bad_request",
                f"the policy has no field {name!r:.80}; its fields are {', '.join(FIELDS)}",
            )
        words += (name, FIELDS[name].to_store(value))
    return words


def values_of(pool: PolicyValues) -> dict[str, Any]:
    """Return the value of every field by its name."""
    return {name: getattr(pool, name) for name in FIELDS}
