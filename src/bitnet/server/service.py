"""What all requests to one app share."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from bitnet.server.keys import ApiKeys
from bitnet.server.limits import Limits
from bitnet.server.metrics import Metrics
from bitnet.server.serving import ServedModels

if TYPE_CHECKING:
    from bitnet.server.watch import Watch


class Service:
    """Models, limits, keys, and what is under way.

    draining: no new requests are taken. watches: one for each computation under way.
    """

    def __init__(self, models: ServedModels, limits: Limits, keys: ApiKeys) -> None:
        self.models = models
        self.limits = limits
        self.keys = keys
        self.metrics = Metrics(models, lambda: self.n_requests)
        self.draining = False
        self.n_requests = 0
        self.watches: set[Watch] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    def enter(self) -> None:
        self.n_requests += 1
        self._idle.clear()

    def leave(self) -> None:
        self.n_requests -= 1
        if self.n_requests == 0:
            self._idle.set()

    async def drain(self, seconds: float) -> bool:
        """Take no new requests, and wait until those under way are answered, `seconds` at most.

        What is not done by then is stopped and told so. Returns whether all were answered.
        """
        self.draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except asyncio.TimeoutError:
            for watch in list(self.watches):
                watch.stop("shutdown")
            return False
        return True
