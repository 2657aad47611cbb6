"""What the verbs of `ckpt` find in a store."""

from __future__ import annotations

import pytest

from behemoth.base.ids import Step, WriteId
from behemoth.checkpoint.marker import Marker
from behemoth.checkpoint.paths import PINS, REJECTED, marker_key
from behemoth.testing.store import MemoryStore
from behemoth_cli.commands.selection import all_found, pins_of
from checkpoint.others_first import OthersFirst

WRITES = [(Step(10 + number), WriteId(f"a1-{number}")) for number in range(8)]


@pytest.mark.parametrize("folder", [REJECTED, PINS])
def test_reasons_in_markers_are_read_several_at_a_time(folder: str) -> None:
    inner = MemoryStore()
    for write in WRITES:
        inner.create(marker_key(folder, *write), Marker.of(*write, reason=f"why {write[1]}").encode())
    store = OthersFirst(inner, marker_key(folder, *WRITES[0]), num_others=len(WRITES) - 1)
    reasons = {write: f"why {write[1]}" for write in WRITES}
    if folder == PINS:
        assert pins_of(store) == reasons
    else:
        assert {(one.step, one.write_id): one.reason for one in all_found(store)} == reasons
