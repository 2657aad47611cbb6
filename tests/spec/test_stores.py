"""The second store in a run file: what makes no sense is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from behemoth.spec.decode import decode_run
from behemoth.spec.document import to_document
from behemoth.spec.problem import InvalidRun

RUN = (Path(__file__).parents[2] / "manifests" / "examples" / "numpy.yaml").read_text()


def with_checkpoint(text: str) -> bytes:
    return RUN.replace("  checkpoint:\n", f"  checkpoint:\n    {text}\n").encode()


def test_a_second_store_reads_back_as_it_was_written() -> None:
    drained = "drain: {to: s3://bucket/safe, every: 4, rate: 500MB, limit: 30m, retention: {keep_last: 5}}"
    run = decode_run(with_checkpoint(f"{drained}\n    durable: drain"), source="run.yaml")
    drain = run.checkpoint.drain
    assert drain is not None
    assert (drain.to, drain.every, drain.rate, drain.retention.keep_last) == ("s3://bucket/safe", 4, 500_000_000, 5)
    assert run.checkpoint.durable == "drain"
    assert decode_run(str(to_document(run)).encode(), source="again") == run


@pytest.mark.parametrize(
    ("text", "path", "code"),
    [
        ("durable: drain", "spec.checkpoint.durable", "drain-missing"),
        ("durable: peer\n    drain: {to: /safe}", "spec.checkpoint.durable", None),
        ("store: /fast\n    drain: {to: /fast/}", "spec.checkpoint.drain.to", "drain-same"),
        ("drain: {to: /safe, rate: 0B}", "spec.checkpoint.drain.rate", "out-of-range"),
        ("drain: {to: /safe, rate: '0'}", "spec.checkpoint.drain.rate", "out-of-range"),
        ("drain: {to: /safe, rate: 0}", "spec.checkpoint.drain.rate", "missing-unit"),
        ("drain: {to: /safe, every: 0}", "spec.checkpoint.drain.every", "out-of-range"),
        ("drain: {to: /safe, retention: {keep_last: 1}}", "spec.checkpoint.drain.retention.keep_last", "out-of-range"),
        ("drain: {every: 2}", "spec.checkpoint.drain.to", None),
        ("drain: {to: 'gs://bucket'}", "spec.checkpoint.drain.to", "not-supported-yet"),
        ("drain: {to: 's3://key:secret@bucket'}", "spec.checkpoint.drain.to", "store-credentials"),
        ("drain: {to: 's3:///x?X-Amz-Signature=secret'}", "spec.checkpoint.drain.to", "store-url"),
        ("drain: {to: 'https://host/x?X-Amz-Signature=secret'}", "spec.checkpoint.drain.to", "not-supported-yet"),
        ("drain: {to: 'file://me:secret@host/x'}", "spec.checkpoint.drain.to", "store-url"),
        ("drain: {to: 'file:///x?X-Amz-Signature=secret'}", "spec.checkpoint.drain.to", "store-url"),
    ],
)
def test_what_makes_no_sense_is_refused(text: str, path: str, code: str | None) -> None:
    with pytest.raises(InvalidRun) as caught:
        decode_run(with_checkpoint(text), source="run.yaml")
    (problem,) = caught.value.problems
    assert problem.path == path
    assert code is None or problem.code == code
    assert not path.endswith(".rate") or problem.hint == "leave it out for no limit"
    assert "secret" not in str(caught.value)
