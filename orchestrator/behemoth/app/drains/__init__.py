"""Copies of a run's checkpoints in a second store: the process that makes them, and the leader's end of it."""
