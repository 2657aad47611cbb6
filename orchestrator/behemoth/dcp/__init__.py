"""`torch.distributed.checkpoint` on Behemoth's format: a StorageWriter and a StorageReader, and older DCP checkpoints.

    dcp.save(state_dict, storage_writer=BehemothWriter("checkpoints/step-100"))
    dcp.load(state_dict, storage_reader=BehemothReader("checkpoints/step-100"))

Of all packages only this one and `workloads` import torch. It runs in processes that are not Behemoth's, opens stores
by itself, and must not be needed by anything that works without torch. Neighbour: `behemoth.checkpoint`, which does
the work.
"""

from __future__ import annotations

from behemoth.base.errors import Invalid

try:
    from behemoth.dcp.reader import BehemothReader
    from behemoth.dcp.writer import BehemothWriter
except ModuleNotFoundError as error:
    if error.name is None or error.name.partition(".")[0] != "torch":
        raise
    raise Invalid(
        "behemoth.dcp: expected PyTorch beside Behemoth, got an environment without it",
        hint="pip install 'behemoth[torch]'",
        code="torch-missing",
    ) from error

__all__ = ["BehemothReader", "BehemothWriter"]
