"""What the benchmark of tiers restores comes from the tier that its rows name."""

from __future__ import annotations

from pathlib import Path

from restore_tiers import OtherNode, ThisNode


def test_each_tier_of_the_benchmark_gives_the_whole_state_and_reads_of_the_store_what_it_says(tmp_path: Path) -> None:
    other = OtherNode(num_layers=1)
    here = ThisNode(tmp_path, 1, other)
    try:
        read = {origin: here.restore(origin)[0].store_bytes for origin in ("memory", "peer", "store")}
    finally:
        here.close()
        other.close()
    assert (read["memory"], read["peer"]) == (0, 0)
    assert here.num_bytes <= read["store"] < here.num_bytes * 1.01
