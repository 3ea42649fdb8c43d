"""PCIe throughput: asked for apart from the samples, and only where it is wanted."""

from __future__ import annotations

RATES = [(1000.0 * (i + 1), 2000.0 * (i + 1)) for i in range(8)]


def rates(sample):
    return [(row["pcie_tx_kb_s"], row["pcie_rx_kb_s"]) for row in sample["devices"]]


def test_pcie_is_not_asked_for_unless_wanted(machine):
    """By default there is no such number, and no such call."""
    host = machine("hang=nvmlDeviceGetPcieThroughput", pcie=False)
    assert rates(host.sample()) == [(None, None)] * 8
    host.close()


def test_pcie_that_is_wanted_comes_to_the_rows(machine):
    """The first round starts at once; what it told stands in each row until the next."""
    host = machine(pcie=True)
    host.until(lambda sample: rates(sample) == RATES)
    assert rates(host.sample()) == RATES
    host.close()


def test_pcie_never_delays_a_sample(machine):
    """A round takes 40 ms for each GPU; the samples meanwhile do not."""
    host = machine(pcie_every_s=0.5)
    host.until(lambda sample: rates(sample) == RATES)
    told = host.sample(10)
    assert told["took_s"] < 10 * 0.2
    assert host.close() < 3.0


def test_pcie_that_hangs_costs_its_own_numbers(machine):
    """Samples go on, and what was told grows too old to be shown; it comes back."""
    host = machine(pcie_every_s=0.2)
    host.until(lambda sample: rates(sample) == RATES)
    host.say("hang=nvmlDeviceGetPcieThroughput")
    sample = host.until(lambda sample: rates(sample) == [(None, None)] * 8)
    assert {row["state"] for row in sample["devices"]} == {"ok"}
    host.let_go()
    host.until(lambda sample: rates(sample)[7] == RATES[7])
    assert host.close() < 3.0


def test_pcie_that_hangs_does_not_have_nvml_shut_under_it(machine):
    """A lost GPU would have NVML opened anew: not while that call runs, nor at the end."""
    host = machine("lost=7", "hang=nvmlDeviceGetPcieThroughput", pcie_every_s=0.2, reopen_s=0.0)
    sample = host.sample(5)
    assert [row["state"] for row in sample["devices"]] == ["ok"] * 7 + ["lost"]
    assert host.close() < 3.0


def test_pcie_not_supported_by_one_gpu_is_none_there(machine):
    """The others have theirs, and its row is well."""
    host = machine("fail=nvmlDeviceGetPcieThroughput/3/2", pcie_every_s=30.0)
    sample = host.until(lambda sample: rates(sample)[7] == RATES[7])
    assert rates(sample) == [*RATES[:2], (None, None), *RATES[3:]]
    assert (sample["devices"][2]["state"], sample["devices"][2]["nvml_error"]) == ("ok", None)
