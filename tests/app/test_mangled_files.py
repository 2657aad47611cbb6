"""Whatever stands in a run's own files, or in a file about a model, where a document of ours should be: what was
written, or an error that says so; never a raw trace, and in bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import behemoth.spec
from behemoth.app.event_log import read_events
from behemoth.app.events import warning
from behemoth.app.history import read_history
from behemoth.app.inventory_file import read_inventory
from behemoth.app.run_directory import DrainState, Identity, RunDirectory, Term
from behemoth.base.ids import Epoch, RunUid, Step
from behemoth.reconcile.journal import audit, decode_lines
from behemoth.spec.llama4 import decode_config
from behemoth.spec.model import decode_inventory
from behemoth.spec.safetensors_header import decode_index
from checkpoint.mangled import mangled_bytes, mangled_document
from checkpoint.test_mangled import bounded
from reconcile.test_journal import _eventful

JOURNAL = _eventful().journal
CONFIG = {
    "model_type": "llama4",
    "text_config": {
        "hidden_size": 64,
        "intermediate_size": 96,
        "intermediate_size_mlp": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_local_experts": 4,
        "vocab_size": 256,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "interleave_moe_layer_step": 2,
        "moe_layers": [1, 3],
        "attention_bias": False,
        "tie_word_embeddings": False,
    },
    "vision_config": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "image_size": [28, 28]},
}
INVENTORY = msgspec.json.decode((Path(behemoth.spec.__file__).parent / "data" / "scout.json").read_bytes())
INDEX = {"metadata": {"total_size": 8}, "weight_map": {"w": "a.safetensors", "v": "b.safetensors"}}
MODELS: dict[str, tuple[object, Callable[..., object]]] = {
    "config": (CONFIG, decode_config),
    "inventory": (INVENTORY, decode_inventory),
    "index": (INDEX, decode_index),
}


@settings(max_examples=40)
@given(data=st.data())
def test_a_mangled_journal_is_told_or_folds(data: st.DataObject) -> None:
    """It has no checksum: a line may be another fact than the one that was written."""
    lines = JOURNAL.splitlines(keepends=True)
    at = data.draw(st.integers(0, len(lines) - 1))
    document = msgspec.json.decode(lines[at])
    line = data.draw(mangled_bytes(lines[at]) | mangled_document(document, encode=msgspec.json.encode)) + b"\n"
    journal = b"".join([*lines[:at], line, *lines[at + 1 :]])
    with bounded():
        read_history(journal)
        audit(decode_lines(journal))


@pytest.mark.parametrize("name", sorted(MODELS))
def test_each_file_about_a_model_is_understood(name: str) -> None:
    document, decode = MODELS[name]
    assert decode(msgspec.json.encode(document), source="f")


@pytest.mark.parametrize("name", sorted(MODELS))
@settings(max_examples=40)
@given(data=st.data())
def test_a_mangled_file_about_a_model_is_read_or_refused(name: str, data: st.DataObject) -> None:
    document, decode = MODELS[name]
    whole = msgspec.json.encode(document)
    with bounded():
        decode(data.draw(mangled_bytes(whole) | mangled_document(document, encode=msgspec.json.encode)), source="f")


@settings(max_examples=40)
@given(data=st.data())
def test_a_mangled_file_of_any_form_is_read_or_refused(data: st.DataObject) -> None:
    document, _ = MODELS[data.draw(st.sampled_from(sorted(MODELS)))]
    rubbish = data.draw(mangled_document(document, encode=msgspec.json.encode))
    with bounded():
        read_inventory(Path("model.json"), lambda path, _: rubbish if path.name == "model.json" else b"")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return RunDirectory(tmp_path_factory.mktemp("mangled"))


def test_an_event_log_of_anything_is_the_events_that_can_be_read(directory: RunDirectory) -> None:
    event = msgspec.json.encode(warning("Reason", "message", at_us=1, observation=None))
    file = directory.path / "events.jsonl"

    @settings(max_examples=40)
    @given(data=st.data())
    def read(data: st.DataObject) -> None:
        document = msgspec.json.decode(event)
        rubbish = data.draw(mangled_bytes(event) | mangled_document(document, encode=msgspec.json.encode))
        file.write_bytes(b"\n".join([event, rubbish, event, b""]))
        assert len(read_events(file)) >= 2

    read()


def test_a_mangled_file_of_a_run_directory_is_read_or_refused(directory: RunDirectory) -> None:
    files: dict[Path, tuple[object, Callable[[], object]]] = {
        directory._identity: (Identity(run_uid=RunUid("0123"), name="run", store="/s"), directory.identity),
        directory._term: (Term(epoch=Epoch(3), port=4000, pid=7), directory.term),
        directory._drain: (DrainState(url="s3://b/p", step=Step(7)), directory.drain),
    }

    @settings(max_examples=40)
    @given(data=st.data())
    def read(data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(sorted(files)))
        value, read_it = files[path]
        document = msgspec.to_builtins(value)
        rubbish = mangled_bytes(msgspec.json.encode(value)) | mangled_document(document, encode=msgspec.json.encode)
        path.write_bytes(data.draw(rubbish))
        with bounded():
            read_it()

    read()
