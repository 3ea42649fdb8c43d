"""Attribution of GPU use: a host's samples, matched to leases, with findings and health.

`sampler` takes a look at the devices, and `processes` asks the system about a pid; `ownership`
matches processes to leases; `accounting` divides the memory among them; `findings` names what is
wrong; `health` withholds a GPU; `enforcement` ends processes where the policy asks for it;
`report` makes a report of it all.
"""
