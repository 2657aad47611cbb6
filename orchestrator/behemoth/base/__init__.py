"""Errors, ids, units, clock, retry. Knows nothing else of Behemoth."""
