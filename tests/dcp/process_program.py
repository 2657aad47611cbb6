"""`dcp.process_program STORE`: two ranks save twice with async_save, by a process of each rank.

Prints one JSON document: of each rank, whether what it loads is what it saved last, as it was when it was staged.
"""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType, AsyncSaveResponse

from behemoth.dcp import BehemothReader, BehemothWriter
from dcp.states import leaves, placements
from dcp.world import run_world


def save(url: str) -> dict[str, Any]:
    """As torchtitan does: staged, saved by a daemon process, the same writer again."""
    writer = BehemothWriter(url)
    stager = DefaultStager(
        StagingOptions(
            use_pinned_memory=torch.cuda.is_available(),
            use_shared_memory=True,
            use_async_staging=True,
            use_non_blocking_copy=torch.cuda.is_available(),
        )
    )
    for step in (1, 2):
        state = {**placements(step), "step": step}
        done = dcp.async_save(
            state,
            storage_writer=writer,
            checkpoint_id=f"{url}/step-{step}",
            async_checkpointer_type=AsyncCheckpointerType.PROCESS,
            async_stager=stager,
        )
        assert isinstance(done, AsyncSaveResponse)
        done.staging_completion.result()
        for value in state.values():  # what training does next must not reach the checkpoint
            if isinstance(value, torch.Tensor):
                value.zero_()
        done.upload_completion.result()
    stager.close()
    got = {**placements(9), "step": 0}
    dcp.load(got, storage_reader=BehemothReader(url))
    dist.barrier()
    return {"same": leaves(got) == leaves({**placements(2), "step": 2})}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.stdout.write(json.dumps(run_world(2, lambda _: save(sys.argv[1]))))
