"""A whole save by cooperating uploads to a real S3 server, and back."""

from __future__ import annotations

import pytest

from behemoth.checkpoint.commit_log import commits
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.checkpoint.verify import verify
from behemoth.ports import MIN_PART_BYTES
from behemoth.spec.mesh import Mesh
from checkpoint.checkpoint_rig import commit_receipts, logical_arrays
from checkpoint.company_rig import upload_all_ranks
from servers.fault_proxy import Fault, How, fault_proxy
from servers.s3_server import S3Server
from storage.s3_stores import let_in, new_place, opened

LAYOUT = Layout(
    mesh=Mesh(dp=2, tp=2, edp=4),
    arrays=(
        ArraySpec(name="model/w", dtype="bfloat16", shape=(32, 1 << 19), dims=((0, "tp"),), flat_over="dp"),
        ArraySpec(name="state/count", dtype="int64", shape=()),
    ),
    sharding="box",
)


def test_what_ranks_upload_together_is_read_back_bit_for_bit(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    let_in(monkeypatch, s3)
    with fault_proxy(s3.port) as proxy, opened(new_place(endpoint=proxy.endpoint)) as store:
        proxy.plan(
            Fault(How.STORM, "PUT", "partNumber=", times=3),
            Fault(How.CUT_REQUEST, "PUT", "partNumber=2"),
            Fault(How.LOSE, "POST", "uploadId="),
        )
        receipts = upload_all_ranks(store, LAYOUT, logical_arrays(LAYOUT, 7))
        commit_receipts(store, LAYOUT, receipts, step=1)
        assert len(proxy.struck) == 5
        assert list(store.list_uploads("")) == []
        shards = [info for info in store.list("steps") if "/model/w/c/" in info.key]
        assert all(info.size_bytes > 2 * MIN_PART_BYTES for info in shards)
        (commit,) = commits(store)
        assert verify(store, commit, threads=2, deep=True).is_intact
