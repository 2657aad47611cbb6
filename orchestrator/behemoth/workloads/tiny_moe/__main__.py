"""`python -m behemoth.workloads.tiny_moe`: the same program outside a run, as a world of one."""

from behemoth.workloads.tiny_moe.program import main

main()
