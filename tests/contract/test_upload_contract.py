"""Every store that takes uploads of parts under the one contract; S3 itself is in tests/storage."""

from typing import Any

import pytest

from behemoth.testing.bucket import MemoryBucket
from behemoth.testing.faults import FaultyBucket
from behemoth.testing.uploads import UploadContract


class TestMemoryBucket(UploadContract):
    @pytest.fixture
    def store(self) -> Any:
        return MemoryBucket()

    def reopened(self, store: Any) -> Any:
        return store


class TestFaultyBucketWithoutFaults(TestMemoryBucket):
    @pytest.fixture
    def store(self) -> Any:
        return FaultyBucket(MemoryBucket())
