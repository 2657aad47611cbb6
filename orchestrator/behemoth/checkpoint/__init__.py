"""The checkpoint engine: layout, plan, staging, writer, commit, reader, verify, gc. Imports ports, never an adapter."""
