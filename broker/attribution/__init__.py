"""Who really uses the GPUs, and how they are: what a host makes of its samples.

`looking` takes a look, and `programs` asks the system who is behind a pid; `match` finds their
leases; `account` reckons what is used by whom; `findings` names what is not as it should be;
`health` decides when a GPU is lent to nobody; `ending` ends processes, where that was asked for;
`reckoning` makes a report of it all.
"""
