"""Settings, with a docstring per field. Empty until a process has settings that the run file does not hold."""
