"""Structured logs and metrics. Empty until the controller exports metrics; logs go through the standard library."""
