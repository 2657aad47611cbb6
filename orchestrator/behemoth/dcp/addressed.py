"""The methods that DCP calls on StorageReader and StorageWriter alike: about which checkpoint they work on.

Neighbours: `reader` and `writer`; `address` says what an id names.
"""

from __future__ import annotations

import os

from behemoth.base.errors import Invalid
from behemoth.dcp.address import Address, parse_address


class Addressed:
    """Holds the address; at first that of the constructor."""

    def __init__(self, given: Address) -> None:
        super().__init__()
        self._given = given
        self._address = given

    @property
    def checkpoint_id(self) -> str:
        """The store, and the step where it is known: DCP's log names it."""
        return self._address.url if self._address.step is None else f"{self._address.url} step {self._address.step}"

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether the id names a store that can be opened."""
        try:
            parse_address(checkpoint_id)
        except Invalid:
            return False
        return True

    def _turn_to(self, checkpoint_id: str | os.PathLike[str] | None) -> None:
        """Switch to another checkpoint id; None: back to the address of the constructor."""
        self._address = self._given
        if checkpoint_id is not None:
            self._address = parse_address(checkpoint_id, store=self._given.url)
