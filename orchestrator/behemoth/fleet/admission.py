"""Who may connect: this protocol, this run, a token of ours, and the incarnation that the brain last asked for."""

from __future__ import annotations

from behemoth.base.ids import NodeId, RunUid
from behemoth.fleet.tokens import Tokens
from behemoth.wire import frames
from behemoth.wire.commands import Rejected
from behemoth.wire.reports import Hello, Report


class Admission:
    """Expected incarnations only rise, so an evicted agent is never admitted again."""

    def __init__(self, *, run_uid: RunUid, tokens: Tokens) -> None:
        self._run_uid = run_uid
        self._tokens = tokens
        self._expected: dict[NodeId, int] = {}

    def expect(self, node: NodeId, incarnation: int) -> None:
        """From now on only this incarnation is admitted, unless a later one already is."""
        self._expected[node] = max(incarnation, self._expected.get(node, 0))

    def token_for(self, node: NodeId, incarnation: int) -> str:
        return self._tokens.mint(node, incarnation)

    def check(self, first: Report) -> Hello | Rejected:
        """The hello when its sender may come in, else what to answer."""
        if not isinstance(first, Hello):
            return Rejected(code="hello-expected", reason=f"expected a hello first, got {type(first).__name__}")
        if first.major != frames.PROTOCOL_MAJOR:
            return Rejected(
                code="protocol-version", reason=f"expected protocol {frames.PROTOCOL_MAJOR}, got {first.major}"
            )
        if first.run_uid != self._run_uid:
            return Rejected(code="other-run", reason="the agent belongs to another run")
        if not self._tokens.is_valid(first.token, first.node, first.incarnation):
            return Rejected(code="bad-token", reason=f"node {first.node}: the token does not match")
        expected = self._expected.get(first.node)
        if first.incarnation != expected:
            return Rejected(
                code="stale-incarnation",
                reason=f"node {first.node}: expected incarnation {expected}, got {first.incarnation}",
            )
        return first
