"""Settings, with a docstring per field."""
