"""Quarantine of a GPU, and the reports that end it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agent_sdk.state.devices import DeviceStatus
from broker.attribution.health import CLEAN_S, HELD, PROBED, Health
from broker.attribution.xids import SEVERE, XIDS, action_of, recovery_words
from tests.attribution.worlds import gpu

if TYPE_CHECKING:
    from broker.attribution.health import Verdict

ROOT = Path(__file__).parents[2]


class Gpu:
    """One GPU as the pool knows it, judged second after second."""

    def __init__(self) -> None:
        self.health = Health()
        self.quarantine = ""
        self.now = 0.0

    def judge(self, overrides: str = "", after_s: float = 5, **about: Any) -> Verdict:
        """Judge a sample that is taken so many seconds after the last."""
        self.now += after_s
        device = gpu(**({"recovery_action": 0, "rows_pending": False} | about))
        verdict = self.health.judge(device, device, self.known, overrides, self.now)
        if verdict.quarantine is not None:
            self.quarantine = verdict.quarantine
        return verdict

    @property
    def known(self) -> DeviceStatus:
        """Return the device's hash."""
        return DeviceStatus(
            uuid="GPU-a", index=0, host="h1", name="", model="", state="ok", reason="",
            drained=False, simulated=False, total_mb=1, system_mb=0, leased_mb=0, withheld_mb=0,
            unleased_mb=0, leases=0, exclusive="", reserved_for="", used_mb=0, sampled_ms=0,
            nvml_error=None, quarantine=self.quarantine,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("code", "action"),
    [(13, "ignore"), (31, "ignore"), (43, "ignore"), (45, "ignore"), (68, "ignore"),
     (94, "ignore"), (48, "probe"), (64, "probe"), (74, "probe"), (95, "probe"), (109, "probe"),
     (119, "probe"), (120, "probe"), (62, "hold"), (79, "hold"), (1, "suspect"), (999, "suspect"),
     (46, "probe"), (110, "probe"), (136, "probe"), (140, "probe"), (143, "probe"),
     (149, "probe"), (155, "probe"), (156, "probe"), (158, "probe"), (171, "probe"),
     (151, "hold"), (69, "ignore"), (137, "ignore"), (63, "suspect"), (92, "suspect"),
     (121, "suspect"), (154, "suspect"), (157, "suspect"), (160, "suspect")],
)  # fmt: skip
def test_error_code_has_its_action(code: int, action: str) -> None:
    """The table, and for a code that is not in it an event alone; the policy goes before both."""
    assert action_of(code, "") == action
    assert action_of(code, f"7=hold,{code}=ignore") == "ignore"
    assert action_of(code, f"1{code}=ignore") == action
    one = Gpu()
    verdict = one.judge(xids=(code,))
    withheld = action in {"probe", "hold"}
    assert verdict.state == ("quarantined" if withheld else "ok")
    assert verdict.xids == f"{code}:{action}"
    assert one.quarantine.endswith({"probe": PROBED, "hold": HELD}.get(action, ""))
    assert bool(one.quarantine) == withheld


def test_xid_79_then_94_then_13_holds_the_gpu_for_the_first() -> None:
    """XID storm: what an application did afterwards does not make it any better."""
    one = Gpu()
    for code in (79, 94, 13):
        verdict = one.judge(xids=(code,))
    assert verdict.state == "quarantined"
    assert one.quarantine == f"XID 79 (fell off the bus){HELD}"
    for _ in range(100):
        assert one.judge().state == "quarantined", "nothing but an operator gives it back"


def test_worse_code_after_a_better_one_holds_it() -> None:
    """And a better one after a worse changes nothing."""
    one = Gpu()
    one.judge(xids=(48,))
    assert one.quarantine.endswith(PROBED)
    one.judge(xids=(79,))
    assert one.quarantine.endswith(HELD)
    one.judge(xids=(48,))
    assert "79" in one.quarantine


def test_gpu_comes_back_by_itself_after_a_clean_probe() -> None:
    """Well, its driver asking for nothing, for a minute."""
    one = Gpu()
    one.judge(xids=(48,))
    assert one.judge(after_s=CLEAN_S - 1).state == "quarantined"
    assert one.judge(after_s=2).state == "ok"
    assert one.quarantine == ""
    assert one.judge().quarantine is None


@pytest.mark.parametrize(
    "about",
    [{"recovery_action": 1}, {"recovery_action": None}, {"rows_pending": True}, {"state": "error"},
     {"xids": (95,)}],
)  # fmt: skip
def test_gpu_that_is_not_well_does_not_come_back(about: dict[str, Any]) -> None:
    """Neither while the driver asks for something, nor when it cannot tell whether it does."""
    one = Gpu()
    one.judge(xids=(48,))
    for _ in range(30):
        one.judge(**about)
    assert one.quarantine != ""


def test_probe_begins_anew_after_trouble() -> None:
    """A minute is a minute without anything in it."""
    one = Gpu()
    one.judge(xids=(48,))
    one.judge(after_s=50)
    one.judge(state="error", after_s=1)
    assert one.judge(after_s=50).state == "quarantined"
    assert one.judge(after_s=15).state == "ok"


def test_reporter_that_starts_anew_finds_the_quarantine_in_the_pool() -> None:
    """It is kept there: the new one waits a minute of its own."""
    one = Gpu()
    one.judge(xids=(48,))
    one.health = Health()
    assert one.judge().state == "quarantined"
    assert one.judge(after_s=CLEAN_S).state == "ok"


def test_undrain_ends_a_quarantine_for_good() -> None:
    """The pool has none any more: nothing that came before begins it anew."""
    one = Gpu()
    one.judge(xids=(79,))
    one.quarantine = ""
    assert one.judge().state == "ok"


@pytest.mark.parametrize("action", [1, 2, 3, 4, 5, 6, 7])
def test_recovery_action_withholds_until_the_driver_asks_for_none(action: int) -> None:
    """A reset, a reboot: whatever it asks for, nobody gets the GPU before."""
    one = Gpu()
    assert one.judge(recovery_action=action).state == "quarantined"
    assert f"recovery action {action}" in one.quarantine
    one.judge()
    assert one.judge(after_s=CLEAN_S).state == "ok"


FIVE = (
    "in driver branch 580: a reset of the GPU's bus; "
    "in driver branch 595: a recovery of its IMEX domain"
)


@pytest.mark.parametrize(
    ("action", "driver", "words"),
    [
        (1, "570.86.10", "a reset of the GPU (recovery action 1)"),
        (2, None, "a reboot of the machine (recovery action 2)"),
        (
            4,
            "575.51",
            "an end of all peer-to-peer traffic and a reset of the GPU (recovery action 4)",
        ),
        (5, "580.65.06", "a reset of the GPU's bus (recovery action 5)"),
        (5, "590.44.01", f"recovery action 5 ({FIVE})"),
        (5, "595.45.04", "a recovery of its IMEX domain (recovery action 5)"),
        (5, None, f"recovery action 5 ({FIVE})"),
        (6, "610.43", "recovery action 6 (in driver branch 615: a reset of the GPU's PCIe bus)"),
        (7, "580.65.06", "recovery action 7 (in driver branch 615: a reboot of the system)"),
        (6, "615.71", "a reset of the GPU's PCIe bus (recovery action 6)"),
        (7, "620.10", "a reboot of the system (recovery action 7)"),
        (8, "620.10", "recovery action 8"),
    ],
)
def test_recovery_action_means_what_its_driver_means(
    action: int, driver: str | None, words: str
) -> None:
    """Numbers changed their meaning; one that the driver's branch has not is told as it is."""
    assert recovery_words(action, driver) == words
    device = gpu(recovery_action=action)
    verdict = Health().judge(device, device, None, "", 0, driver)
    assert verdict.reason == f"the driver asks for {words}{PROBED}"


def test_changed_recovery_action_is_the_driver_s_own_word() -> None:
    """XID 154 tells only that it changed: back to none as well; untold, the GPU is withheld."""
    one = Gpu()
    assert one.judge(xids=(154,)).state == "ok"
    verdict = one.judge(xids=(154,), recovery_action=None)
    assert (verdict.state, verdict.xids) == ("quarantined", "154:probe")
    spared = Gpu()
    assert spared.judge("154=suspect", xids=(154,), recovery_action=None).state == "ok"


def test_operators_read_the_table_as_it_is() -> None:
    """The alert counts the codes that withhold a GPU; the page of quarantine lists them all."""
    rules = (ROOT / "deploy" / "prometheus" / "rules.yml").read_text()
    alerted = re.findall(r"gpu_broker_device_xid_last == (\d+)", rules)
    assert [int(code) for code in alerted] == list(SEVERE)
    page = (ROOT / "docs" / "how-to" / "gpu-health.md").read_text()
    for action in ("ignore", "probe", "hold"):
        (listed,) = re.findall(rf"^\| `{action}` \| ([\d, -]+) \|", page, re.MULTILINE)
        ends = [each.partition("-") for each in listed.split(", ")]
        codes = {c for low, _, high in ends for c in range(int(low), int(high or low) + 1)}
        assert codes == {code for code, of in XIDS.items() if of == action}


def test_rows_that_cannot_be_remapped_hold_the_gpu() -> None:
    """Its memory cannot be mended."""
    one = Gpu()
    one.judge(rows_failed=True)
    assert one.quarantine.endswith(HELD)


def test_memory_errors_without_a_code_count_as_code_48() -> None:
    """Error codes cannot be watched there; a code that comes with them, or after, decides alone."""
    one = Gpu()
    for count in (5, 5, 6, 6):
        one.judge(ecc_uncorrected=count)
    assert one.quarantine == f"6 uncorrectable memory errors{PROBED}"
    for codes in (((), (94,)), ((94,), ())):
        other = Gpu()
        other.judge(ecc_uncorrected=5)
        for xids in codes:
            other.judge(ecc_uncorrected=6, xids=xids)
        other.judge(ecc_uncorrected=6)
        assert other.quarantine == ""
    lenient = Gpu()
    for count in (5, 6, 6):
        lenient.judge("48=suspect", ecc_uncorrected=count)
    assert lenient.quarantine == ""


def test_mig_device_is_as_well_as_the_gpu_that_it_is_a_part_of() -> None:
    """The driver asks for a reset of the whole: nobody gets a part."""
    part = gpu(uuid="MIG-1", parent="GPU-a")
    whole = gpu(state="mig", recovery_action=1)
    verdict = Health().judge(part, whole, None, "", 1.0)
    assert verdict.state == "quarantined"
    verdict = Health().judge(part, replace(whole, recovery_action=0), None, "", 1.0)
    assert verdict.state == "ok"


def test_divided_gpu_comes_back_after_a_clean_probe_like_its_parts() -> None:
    """Else it would be told to be in quarantine for good, while its parts are lent."""
    one = Gpu()
    assert one.judge(state="mig", xids=(48,)).state == "mig"
    assert one.quarantine.endswith(PROBED)
    one.judge(state="mig", after_s=CLEAN_S + 1)
    assert one.quarantine == ""


@pytest.mark.parametrize("code", [48, 79])
def test_new_part_of_a_gpu_in_quarantine_is_in_it_too(code: int) -> None:
    """Nobody gets the GPU by dividing it anew; an undrain, or a clean probe, ends it for each."""
    one = Gpu()
    one.judge(xids=(code,))
    part = gpu(uuid="MIG-1", parent="GPU-a")
    whole = gpu(state="mig", recovery_action=0)
    new = one.health.judge(part, whole, one.known, "", one.now)
    assert (new.state, new.quarantine) == ("quarantined", one.quarantine)
    known = replace(one.known, uuid="MIG-1")
    again = one.health.judge(part, whole, known, "", one.now + 5)
    assert (again.state, again.quarantine) == ("quarantined", None)
    later = one.health.judge(part, whole, known, "", one.now + CLEAN_S + 1)
    assert later.state == ("ok" if code == 48 else "quarantined")
    lifted = one.health.judge(part, whole, replace(known, quarantine=""), "", one.now + 99)
    assert lifted.state == "ok"


def test_lost_gpu_is_lost_and_comes_back_by_itself() -> None:
    """Its own state says so while it lasts."""
    one = Gpu()
    assert one.judge(state="lost", reason="gone").state == "lost"
    assert one.judge().state == "ok"


@pytest.mark.parametrize("about", [{"rows_failed": True}, {"recovery_action": 2}])
def test_undrain_of_a_gpu_whose_trouble_stands_is_obeyed(about: dict[str, Any]) -> None:
    """The operator knows; the same trouble, gone and back, is a new one."""
    one = Gpu()
    for _ in range(2):
        assert one.judge(**about).state == "quarantined"
    one.quarantine = ""
    for _ in range(5):
        assert one.judge(**about).state == "ok"
    one.judge()
    assert one.judge(**about).state == "quarantined"


UNREAD: dict[str, Any] = {"state": "error", "recovery_action": None, "rows_pending": None}
"""A look at which the driver told nothing: a call failed or hung, or the driver was released."""


@pytest.mark.parametrize("about", [{"rows_failed": True}, {"recovery_action": 2}])
@pytest.mark.parametrize("unread", [UNREAD, UNREAD | {"state": "ok"}])
def test_undrain_is_obeyed_through_looks_that_tell_nothing(
    about: dict[str, Any], unread: dict[str, Any]
) -> None:
    """Also where it came during such a look; a GPU that was lost meanwhile is withheld again."""
    after, during = Gpu(), Gpu()
    for one in (after, during):
        for _ in range(2):
            assert one.judge(**about).state == "quarantined"
    after.quarantine = ""
    assert after.judge(**about).state == "ok"
    after.judge(**unread)
    during.judge(**unread)
    during.quarantine = ""
    during.judge(**unread)
    for one in (after, during):
        assert one.judge(**about).state == "ok"
        one.judge(**UNREAD | {"state": "lost"})
        assert one.judge(**about).state == "quarantined"


@pytest.mark.parametrize("about", [{"rows_failed": True}, {"recovery_action": 2}])
def test_undrain_before_the_next_look_is_obeyed(about: dict[str, Any]) -> None:
    """The pool had the verdict; one that it did not hear of is said again."""
    heard, unheard = Gpu(), Gpu()
    for one in (heard, unheard):
        assert one.judge(**about).state == "quarantined"
        one.quarantine = ""
    heard.health.told()
    assert heard.judge(**about).state == "ok"
    assert unheard.judge(**about).state == "quarantined"


def test_memory_errors_are_not_forgotten_at_a_look_that_tells_nothing() -> None:
    """A GPU with such errors is the one that fails to answer; a code that comes then decides."""
    one, coded = Gpu(), Gpu()
    for each in (one, coded):
        each.judge(ecc_uncorrected=5)
        each.judge(ecc_uncorrected=6)
    one.judge(**UNREAD)
    coded.judge(**UNREAD, xids=(94,))
    for each in (one, coded):
        each.judge(ecc_uncorrected=6)
    assert one.quarantine == f"6 uncorrectable memory errors{PROBED}"
    assert coded.quarantine == ""


def test_quarantine_that_the_pool_did_not_hear_of_is_said_again() -> None:
    """The store was away: nobody has lifted it."""
    one = Gpu()
    one.judge(rows_failed=True)
    one.quarantine = ""
    assert one.judge(rows_failed=True).state == "quarantined"
