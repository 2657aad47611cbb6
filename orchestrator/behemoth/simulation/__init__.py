"""The discrete-event body of the brain."""
