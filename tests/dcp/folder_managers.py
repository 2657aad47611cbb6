"""Checkpoint managers that know folders alone, as torchtitan's does.

They look for `step-N/.metadata` to go on from, and remove old folders in a thread. `manager_of` gives one by name:
`folders` is written here, `torchtitan` is the real one with the change that docs/dcp.md tells its users to make.
"""

from __future__ import annotations

import os
import queue
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

from behemoth.dcp import BehemothReader, BehemothWriter

KEPT = 2
DOCUMENT = Path(__file__).parents[2] / "docs" / "dcp.md"


class Manager(Protocol):
    def load(self, step: int = -1) -> bool: ...

    def save(self, curr_step: int, last_step: bool = False) -> bool: ...

    def maybe_wait_for_staging(self) -> None: ...

    def maybe_wait_for_saving(self) -> None: ...

    def close(self) -> None: ...


def manager_of(name: str, folder: str, mode: str, parts: dict[str, Any]) -> Manager:
    """`mode` is one of torchtitan's: disabled, async, async_with_pinned_mem."""
    if name == "folders":
        return FolderManager(folder, mode, parts)
    return _torchtitan(folder, mode, parts)


def documented_class() -> Any:
    """The class in docs/dcp.md, made of the text that stands there."""
    (text,) = re.findall(r"```python\n(from dataclasses.*?class BehemothCheckpoints.*?)```", DOCUMENT.read_text(), re.S)
    names: dict[str, Any] = {"__name__": "documented"}
    exec(compile(text, str(DOCUMENT), "exec"), names)
    return names["BehemothCheckpoints"]


class FolderManager:
    """Saves all `parts` under their names, and keeps the newest KEPT folders."""

    def __init__(self, folder: str, mode: str, parts: dict[str, Any]) -> None:
        self._folder, self._mode, self._parts = folder, mode, parts
        self._group: Any = dist.new_group(backend="gloo") if mode != "disabled" else None
        self._stager = _stager() if mode == "async_with_pinned_mem" else None
        self._saving: Any = None
        self._staging: Any = None
        self._old: queue.Queue[str | None] = queue.Queue()
        self._purging = threading.Thread(target=self._purge, name="purge", daemon=True)
        self._purging.start()

    def load(self, step: int = -1) -> bool:
        step = step if step != -1 else self._newest()
        if step == -1:
            return False
        dcp.load(self._parts, storage_reader=BehemothReader(f"{self._folder}/step-{step}"))
        return True

    def save(self, curr_step: int, last_step: bool = False) -> bool:
        self.maybe_wait_for_saving()
        writer = BehemothWriter(f"{self._folder}/step-{curr_step}")
        if last_step or self._mode == "disabled":
            dcp.save(self._parts, storage_writer=writer)
        elif self._mode == "async":
            self._saving = dcp.async_save(self._parts, storage_writer=writer, process_group=self._group)
        else:
            done: Any = dcp.async_save(
                self._parts,
                storage_writer=writer,
                process_group=self._group,
                async_checkpointer_type=AsyncCheckpointerType.PROCESS,
                async_stager=self._stager,
            )
            self._staging, self._saving = done.staging_completion, done.upload_completion
        if dist.get_rank() == 0 and os.path.isdir(self._folder):
            for _, name in sorted(self._steps())[:-KEPT]:
                self._old.put(name)
        return True

    def maybe_wait_for_staging(self) -> None:
        if self._staging is not None:
            self._staging.result()
            self._staging = None

    def maybe_wait_for_saving(self) -> None:
        if self._saving is not None:
            self._saving.result()
            self._saving = None

    def close(self) -> None:
        self._old.put(None)
        self._purging.join()
        if self._stager is not None:
            self._stager.close()

    def _steps(self) -> list[tuple[int, str]]:
        found = ((re.search(r"step-(\d+)", name), name) for name in os.listdir(self._folder))
        return [(int(match.group(1)), name) for match, name in found if match]

    def _newest(self) -> int:
        if not os.path.isdir(self._folder):
            return -1
        found = (step for step, name in self._steps() if os.path.isfile(f"{self._folder}/{name}/.metadata"))
        return max(found, default=-1)

    def _purge(self) -> None:
        while (name := self._old.get()) is not None:
            shutil.rmtree(f"{self._folder}/{name}", ignore_errors=True)


def _torchtitan(folder: str, mode: str, parts: dict[str, Any]) -> Manager:
    own = {name: parts[name] for name in ("model", "optimizer", "dataloader", "lr_scheduler")}
    config = documented_class().Config(enable=True, folder=folder, interval=1, keep_latest_k=KEPT, async_mode=mode)
    build: Callable[..., Manager] = config.build
    return build(
        dataloader=own["dataloader"],
        model_parts=[own["model"]],
        optimizers=own["optimizer"],
        lr_schedulers=own["lr_scheduler"],
        states={name: part for name, part in parts.items() if name not in own},
        sd_adapter=None,
    )


def _stager() -> DefaultStager:
    return DefaultStager(
        StagingOptions(
            use_pinned_memory=False, use_shared_memory=True, use_async_staging=True, use_non_blocking_copy=False
        )
    )
