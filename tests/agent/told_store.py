"""A store process that carries out no order, and answers each as it is told: what is shared by those that play one."""

from __future__ import annotations

import asyncio
import itertools
import os
from typing import Generic, TypeVar

from behemoth.agent.storewire import Failed, KeepOnDisk, Pull, StoreReport

LIMIT_S = 60.0
"""Of any wait: it ends a hang and judges no speed."""
Order = TypeVar("Order", Pull, KeepOnDisk)
Done = TypeVar("Done", bound=StoreReport)


class ToldStore(Generic[Order]):
    """Answers orders with what `answers` says, in order, then with success; one of `stuck` waits for `let_go`."""

    def __init__(self) -> None:
        self.orders: list[Order] = []
        self.answers: list[str] = []
        self.code = "io-error"
        """Of each failure that is told."""
        self.stuck: asyncio.Future[None] | None = None
        self.news = asyncio.Event()
        self._jobs = itertools.count(1)

    def new_job(self) -> int:
        return next(self._jobs)

    async def answered(self, order: Order, fd: int, done: Done) -> Done | Failed:
        assert os.fstat(fd)
        self.orders.append(order)
        self.news.set()
        if self.stuck is not None:
            await self.stuck
            return Failed(job=order.job, reason="cancelled", is_corrupt=False, code="cancelled")
        reason = self.answers.pop(0) if self.answers else ""
        if reason:
            return Failed(job=order.job, reason=reason, is_corrupt=False, code=self.code)
        return done

    def let_go(self, job: int) -> None:
        assert self.orders[-1].job == job
        assert self.stuck is not None
        self.stuck.set_result(None)
        self.stuck = None

    async def first(self, count: int) -> list[Order]:
        """The first `count` orders, once there are so many, and no more than these."""
        async with asyncio.timeout(LIMIT_S):
            while len(self.orders) < count:
                self.news.clear()
                await self.news.wait()
        for _ in range(5):
            await asyncio.sleep(0)
        assert len(self.orders) == count
        return self.orders
