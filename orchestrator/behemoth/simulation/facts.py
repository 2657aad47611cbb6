"""What the model's bodies know and would tell again: an agent that reconnects repeats its state, not its history.

`tell` sends evidence and keeps it as long as it is true; `retell` sends every fact that still is. So a channel may lose
anything without the truth being lost for good. Neighbour: `channel`, which does the losing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from behemoth.base.ids import NodeId
from behemoth.state.evidence import Evidence


class Facts:
    """Facts by family, name and, where several hold at once, kind. Order of telling is kept."""

    def __init__(self, *, send: Callable[[Evidence], None]) -> None:
        self._send = send
        self._facts: dict[tuple[str, str], dict[str, Evidence]] = {}

    def tell(self, evidence: Evidence, family: str, name: str, kind: str = "") -> None:
        """Send it, and keep it in place of the former fact of the same family, name and kind."""
        self._facts.setdefault((family, name), {})[kind] = evidence
        self._send(evidence)

    def say(self, evidence: Evidence) -> None:
        """Send what is only true now, such as a Tick; it is never repeated."""
        self._send(evidence)

    def forget(self, family: str, name: str) -> None:
        """These facts are true no longer."""
        self._facts.pop((family, name), None)

    def retell(self, *, silent: Collection[NodeId] = ()) -> None:
        """Send all facts again, in the order in which they became known, but none about nodes that are silent."""
        for (family, name), facts in list(self._facts.items()):
            if family == "node" and name in silent:
                continue
            for evidence in list(facts.values()):
                self._send(evidence)
