"""Errors, ids, slots, units, clock. Knows nothing else of Behemoth."""
