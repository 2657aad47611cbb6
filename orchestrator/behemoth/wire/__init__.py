"""Messages and framing of every connection: agent to coordinator, agent to worker, and node to node."""
