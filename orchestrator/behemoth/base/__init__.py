"""Errors, ids, units, clock. Knows nothing else of Behemoth."""
