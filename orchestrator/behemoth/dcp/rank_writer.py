"""One rank's part of a DCP save: its items, tensors into chunks and values into their typed forms.

What a planner gives is resolved as late as it can be, since that may take memory. Neighbours: `writer`, whose
`write_data` this is; `box_writer` and `bucket_writer` (the bytes of boxes), `values` (what is no tensor).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TypeGuard

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult

from behemoth.base.errors import Invalid
from behemoth.checkpoint.box import shape_of
from behemoth.checkpoint.span_table import WrittenSpan
from behemoth.dcp.box_writer import PlacedBox, write_boxes
from behemoth.dcp.bucket_writer import upload_boxes
from behemoth.dcp.items import TensorItem, tensor_item
from behemoth.dcp.orders import KeptPickle, KeptValue, Orders, SentObjects, Told, WrittenBox
from behemoth.dcp.plain_load import load_plain
from behemoth.dcp.tensors import Tensors, holds_elements
from behemoth.dcp.values import to_record
from behemoth.ports import SavesTo, UploadsParts


class RankWriter:
    """Writes items of one save. Several threads only read it."""

    def __init__(
        self, store: SavesTo, orders: Orders, planner: SavePlanner, *, allow_pickle: bool, threads: int
    ) -> None:
        self._store = store
        self._orders = orders
        self._placed = orders.placed()
        self._planner = planner
        self._allow_pickle = allow_pickle
        self._threads = threads

    def write(self, items: Sequence[WriteItem]) -> list[WriteResult]:
        """A result for each item; its objects are durable. Values first: what is refused is refused before bytes are
        written."""
        results = [self._value(item) for item in items if item.type == WriteItemType.BYTE_IO]
        tensors = [(item, tensor_item(item)) for item in items if item.type != WriteItemType.BYTE_IO]
        # An empty share of an uneven cut, or a tensor without elements, has nothing to write.
        results += [_result(item, 0, WrittenBox(name=head.name)) for item, head in tensors if not head.num_bytes]
        full = [pair for pair in tensors if pair[1].num_bytes]
        boxes = [PlacedBox(self._placed[head.name], head.box) for _, head in full]
        spans, sent = self._store_boxes(boxes, Tensors(lambda number: self._tensor(*full[number])))
        for (item, head), of_box in zip(full, spans, strict=True):
            results.append(_result(item, head.num_bytes, WrittenBox(name=head.name, spans=of_box)))
        if sent is not None:
            results.append(WriteResult(index=MetadataIndex(sent.pieces_key), size_in_bytes=0, storage_data=sent))
        return results

    def _store_boxes(
        self, boxes: Sequence[PlacedBox], tensors: Tensors
    ) -> tuple[list[tuple[WrittenSpan, ...]], SentObjects | None]:
        """Write boxes; the spans of each, and, in S3, what was sent."""
        if not isinstance(self._store, UploadsParts):
            return write_boxes(self._store, boxes, tensors, threads=self._threads), None
        return upload_boxes(
            self._store,
            boxes,
            tensors,
            begun=self._orders.begun,
            pieces_key=self._orders.pieces_key,
            threads=self._threads,
        )

    def _tensor(self, item: WriteItem, head: TensorItem) -> torch.Tensor:
        """The tensor that the planner resolves an item to. Raises Invalid when it is not what it planned."""
        tensor = self._planner.resolve_data(item)
        expected = shape_of(head.box)
        if not isinstance(tensor, torch.Tensor):
            raise _unlike_plan(head, expected, type(tensor).__name__)
        if tuple(tensor.shape) != expected or tensor.dtype != head.dtype:
            raise _unlike_plan(head, expected, f"{tensor.dtype} {tuple(tensor.shape)}")
        if not holds_elements(tensor):
            raise Invalid(
                f"tensor {head.name!r}: expected one with its elements in memory, got {tensor.layout} on "
                f"{tensor.device} in a {type(tensor).__module__}.{type(tensor).__qualname__}",
                hint="save a sparse tensor as its indices and values, a subclass as the tensors that it is made of; a "
                "tensor on `meta` was never filled",
                code="dcp-tensor",
            )
        return tensor

    def _value(self, item: WriteItem) -> WriteResult:
        key = item.index.fqn
        try:
            return _result(item, 0, KeptValue(key=key, value=to_record(self._look_up(item), key)))
        except Invalid:
            if not self._allow_pickle:
                raise
        data = self._stream(item).getvalue()
        return _result(item, len(data), KeptPickle(key=key, data=data))

    def _look_up(self, item: WriteItem) -> object:
        """The object of an item. torch's own planner is asked for it directly; another one may transform it, so the
        stream that it makes with torch.save is read back, if that is possible without running code."""
        if _gives_objects(self._planner):
            return self._planner.lookup_object(item.index)
        try:
            return load_plain(self._stream(item))
        except Exception as error:  # torch raises anything for what it does not load
            raise Invalid(
                f"value {item.index.fqn!r}: expected what torch.load(weights_only=True) reads, got: {error!s:.200}",
                hint="BehemothWriter(allow_pickle=True) keeps it as the planner made it",
                code="dcp-value",
            ) from error

    def _stream(self, item: WriteItem) -> io.BytesIO:
        stream = self._planner.resolve_data(item)
        if not isinstance(stream, io.BytesIO):
            raise Invalid(
                f"value {item.index.fqn!r}: expected a stream from the planner, got {type(stream).__name__}",
                code="dcp-plan-changed",
            )
        stream.seek(0)
        return stream


def _gives_objects(planner: SavePlanner) -> TypeGuard[DefaultSavePlanner]:
    """Whether a planner hands values out as they are: torch's own, or one made of it that leaves them alone."""
    names = ("resolve_data", "transform_object", "lookup_object")
    return isinstance(planner, DefaultSavePlanner) and all(
        getattr(type(planner), name) is getattr(DefaultSavePlanner, name) for name in names
    )


def _unlike_plan(head: TensorItem, expected: tuple[int, ...], got: str) -> Invalid:
    return Invalid(
        f"tensor {head.name!r}: expected {head.dtype} {expected} as it was planned, got {got}", code="dcp-plan-changed"
    )


def _result(item: WriteItem, size_in_bytes: int, data: Told) -> WriteResult:
    return WriteResult(index=item.index, size_in_bytes=size_in_bytes, storage_data=data)
