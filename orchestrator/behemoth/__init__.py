"""Behemoth: places giant training gangs, shards their checkpoints, and brings runs back from faults within seconds.

A training program imports `behemoth.sdk`; an operator uses the command line. Importing this package loads nothing else.
"""
