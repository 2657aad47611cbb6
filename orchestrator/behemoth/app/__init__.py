"""Use cases: run, run directory, drills, reports."""
