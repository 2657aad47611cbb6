"""A preload that fails."""

raise RuntimeError("no way to import this")
