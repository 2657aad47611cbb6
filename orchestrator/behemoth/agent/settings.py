"""The settings of an agent, which its starter passes in environment variables. Neighbour:
`ports.Runtime.start_agent`."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass, field

from behemoth.base.errors import Invalid
from behemoth.base.ids import NodeId, RunUid
from behemoth.ports import LIFELINE_VARIABLE

COORDINATOR_VARIABLE = "BEHEMOTH_COORDINATOR"
RUN_UID_VARIABLE = "BEHEMOTH_RUN_UID"
NODE_VARIABLE = "BEHEMOTH_NODE"
INCARNATION_VARIABLE = "BEHEMOTH_INCARNATION"
TOKEN_VARIABLE = "BEHEMOTH_TOKEN"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """`lifeline_fd`: descriptor whose end of file means that the starter is gone; None: nobody watches."""

    host: str
    port: int
    run_uid: RunUid
    node: NodeId
    incarnation: int
    token: str = field(repr=False)
    lifeline_fd: int | None


def take_settings(environment: MutableMapping[str, str]) -> AgentSettings:
    """Read and remove the agent's variables, the token above all: nothing that the agent starts may inherit them.

    Raises Invalid naming the variable."""
    host, _, port = _take(environment, COORDINATOR_VARIABLE).rpartition(":")
    lifeline = environment.pop(LIFELINE_VARIABLE, "")
    return AgentSettings(
        host=host.strip("[]"),
        port=_whole(COORDINATOR_VARIABLE, port),
        run_uid=RunUid(_take(environment, RUN_UID_VARIABLE)),
        node=NodeId(_take(environment, NODE_VARIABLE)),
        incarnation=_whole(INCARNATION_VARIABLE, _take(environment, INCARNATION_VARIABLE)),
        token=_take(environment, TOKEN_VARIABLE),
        lifeline_fd=_whole(LIFELINE_VARIABLE, lifeline) if lifeline else None,
    )


def _take(environment: MutableMapping[str, str], name: str) -> str:
    value = environment.pop(name, "")
    if not value:
        raise Invalid(f"{name}: expected a value in the environment, got none", hint="agents are started by a Runtime")
    return value


def _whole(name: str, text: str) -> int:
    if not text.isdigit():
        raise Invalid(f"{name}: expected a whole number, got {text!r}")
    return int(text)
