"""What a training program imports: join the run, declare the state, restore, report steps, save. Imports no torch."""

from behemoth.checkpoint.conversion import Cast, HighBits, Joined, LowBits, ScaledDown, ScaledUp, ScalesOf
from behemoth.sdk.joining import join
from behemoth.sdk.place import Place, RankMesh
from behemoth.sdk.run import Run
from behemoth.sdk.state import State

__all__ = [
    "Cast",
    "HighBits",
    "Joined",
    "LowBits",
    "Place",
    "RankMesh",
    "Run",
    "ScaledDown",
    "ScaledUp",
    "ScalesOf",
    "State",
    "join",
]
