"""Both ends of the connection between two nodes' store processes: what lies in memory goes from node to node."""
