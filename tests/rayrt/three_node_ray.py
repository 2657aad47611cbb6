"""A real Ray of three nodes on this machine, in a process of its own: prints its address and its raylets' pids as a
JSON line, and takes it down when standard input ends.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from ray.cluster_utils import Cluster

OBJECT_STORE_BYTES = 100 << 20


def main() -> None:
    options: dict[str, Any] = {"num_cpus": 1, "object_store_memory": OBJECT_STORE_BYTES}
    cluster: Any = Cluster(initialize_head=True, head_node_args={**options, "include_dashboard": False})
    nodes = [cluster.head_node, *(cluster.add_node(**options) for _ in range(2))]
    raylets = [node.all_processes["raylet"][0].process.pid for node in nodes]
    told = {"address": cluster.address, "raylets": raylets, "session": cluster.head_node.get_session_dir_path()}
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    main()
