"""Steps of which a run's nodes hold whole copies at this moment, in memory and on disks, as these say themselves: no
event tells. Nothing here changes what it looks at. The neighbour is `kill_stage`, the run."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from behemoth.base.errors import Corrupt
from behemoth.base.ids import Step
from behemoth.checkpoint.arena import Arena
from behemoth.checkpoint.arena_format import PAGE_BYTES
from behemoth.checkpoint.snapshot_format import SnapshotHeader
from behemoth.testing.leftovers import Found
from fault.kill_stage import KillStage


def newest_step(stage: KillStage) -> int | None:
    """The one that was committed last."""
    told = stage.events("Committed")
    return int(str(told[-1]["step"])) if told else None


def holders_of_newest(stage: KillStage) -> list[Found]:
    """Agents whose memory has a whole copy of what another node had when that was committed."""
    newest = newest_step(stage)
    return [agent for agent in stage.living("agent") if newest in copied_steps(agent.pid)]


def copied_steps(pid: int) -> set[Step]:
    """What the memory of this agent has for another node; nothing of one that is gone."""
    found: set[Step] = set()
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            if os.readlink(entry).startswith("/memfd:behemoth-copy-"):
                found |= _whole_steps(entry)
    except OSError:  # it has ended, or has closed this one
        return set()
    return found


def ranks_on_disk(stage: KillStage, disk: Path) -> dict[int, set[int]]:
    """Those of this run of which any node has a whole file, by the step of that."""
    run_uid = json.loads((stage.directory / "identity.json").read_text())["run_uid"]
    found: dict[int, set[int]] = {}
    for path in disk.rglob("rank-*"):
        page = b""
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:  # nodes remove what is of no use any more
            page = file.read(PAGE_BYTES)
        header = SnapshotHeader.decode(page) if len(page) == PAGE_BYTES else None
        if header is not None and header.run_uid == run_uid:
            found.setdefault(header.step, set()).add(header.rank)
    return found


def _whole_steps(entry: Path) -> set[Step]:
    fd = os.open(entry, os.O_RDWR)
    try:
        return {one.step for one in Arena.open(fd).held() if one.is_verified}
    except Corrupt:  # it is being formatted
        return set()
    finally:
        os.close(fd)
