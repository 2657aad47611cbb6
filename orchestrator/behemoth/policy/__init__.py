"""Pure decisions, one module each: no I/O, no clock, no state."""
