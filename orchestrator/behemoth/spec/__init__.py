"""The run as a value: run, model, mesh, units of the run file. No I/O beyond decoding text."""
