"""Reference training programs; they import behemoth.sdk only."""
