"""An import that was cut off goes on with the files that it began with, and with no others."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from behemoth.app.batches.import_job import files_of, require_unchanged
from behemoth.app.batches.jobs import ImportJob, encode_job
from behemoth.app.batches.record import recorded
from behemoth.app.batches.tensors import TensorChange
from behemoth.base.errors import Conflict
from behemoth.ports import Batch
from behemoth.storage.linked import LinkedFolder


def job_of(source: Path) -> bytes:
    job = ImportJob(
        source=os.fsencode(source),
        kind="safetensors",
        file=b"",
        files=files_of(str(source), LinkedFolder(source).list("")),
        skips_pickles=False,
        to=b"there",
        step=0,
        change=TensorChange(),
        layout_digest="of the shapes, which stay",
    )
    return encode_job(job)


def test_other_values_in_files_of_the_same_names_and_sizes_are_another_import(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    model = tmp_path / "source" / "model.safetensors"
    safetensors.numpy.save_file({"w": np.zeros(5)}, model)
    before = job_of(model.parent)
    with recorded(tmp_path / "state", verb="import", job=before) as record:
        record.add(Batch(number=0, data=b"done"))
        assert job_of(model.parent) == before
        safetensors.numpy.save_file({"w": np.ones(5)}, model)
        os.utime(model, ns=(1, 1))  # whatever the clock of this file system can tell apart
        with recorded(tmp_path / "state", verb="import", job=job_of(model.parent)) as other:
            assert not other.done()


def test_a_file_that_was_written_anew_or_went_is_told(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"values")
    store = LinkedFolder(tmp_path)
    files = files_of(str(tmp_path), store.list(""))
    (tmp_path / "another").write_bytes(b"")
    require_unchanged(str(tmp_path), store, files)
    os.utime(tmp_path / "b", ns=(1, 1))
    with pytest.raises(Conflict, match="got 'b' changed while it was read"):
        require_unchanged(str(tmp_path), store, files)
    (tmp_path / "a").unlink()
    with pytest.raises(Conflict, match="got 'a' changed while it was read"):
        require_unchanged(str(tmp_path), store, files)


def test_a_link_that_leads_nowhere_has_a_version_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    ((name, _, version),) = files_of(str(tmp_path), LinkedFolder(tmp_path).list(""))
    assert (name, version != "") == (b"link", True)
