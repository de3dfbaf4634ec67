"""The models behind their names: loaded when they are first asked for, unloaded when they are idle."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping

from bitnet.errors import BitNetError, EngineClosedError
from bitnet.model import BitNet
from bitnet.server.errors import ApiError
from bitnet.values import Health, ModelInfo

logger = logging.getLogger("bitnet.server")

# Makes a BitNet that is not loaded yet (lazy=True). Raises what can be known without loading it.
ModelSource = Callable[[], BitNet]


class ServedModel:
    """A model under a name. Everything but the loading happens in the event loop.

    created: seconds since 1970. n_users: requests that use it at the moment.
    """

    def __init__(self, name: str, source: ModelSource, keep_alive: float) -> None:
        """keep_alive: seconds it stays loaded without being used; negative = until `close`."""
        self.name = name
        self.created = int(time.time())
        self.n_users = 0
        self._source = source
        self._keep_alive = keep_alive
        self._model: BitNet | None = None
        self._loading: asyncio.Task[BitNet] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._info: ModelInfo | None = None

    @property
    def loaded(self) -> bool:
        return self._model is not None

    @property
    def info(self) -> ModelInfo | None:
        """What it is; None = it was never loaded."""
        return self._info

    def health(self) -> Health | None:
        """None = not loaded."""
        return None if self._model is None else self._model.health()

    @contextlib.asynccontextmanager
    async def use(self) -> AsyncIterator[BitNet]:
        """The model, loaded. It stays so while it is used. Raises ApiError if it cannot be loaded."""
        self.n_users += 1
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        try:
            yield self._model or await self._loaded()
        finally:
            self.n_users -= 1
            self._watch_idleness()

    def _watch_idleness(self) -> None:
        if self.n_users == 0 and self._model is not None and self._keep_alive >= 0:
            self._timer = asyncio.get_running_loop().call_later(self._keep_alive, self._expire)

    async def _loaded(self) -> BitNet:
        """`load` for those who cannot help it: what is wrong with a model is not their business."""
        try:
            return await self.load()
        except BitNetError as error:
            logger.error("cannot load model %s: %s", self.name, error)
            message = f"the model {self.name!r} cannot be loaded; the server's log says why"
            raise ApiError(500, message, code="model_error") from None

    async def load(self) -> BitNet:
        """One load for all who wait. It goes on if they give up: the next one will want it.

        Raises what loading raises.
        """
        if self._loading is None:
            self._loading = asyncio.get_running_loop().create_task(self._load_now())
            self._loading.add_done_callback(self._loading_ended)
        return await asyncio.shield(self._loading)

    async def _load_now(self) -> BitNet:
        started_at = time.perf_counter()
        model = await asyncio.to_thread(self._source)
        try:
            await asyncio.to_thread(model.load)
        except BaseException:
            await model.aclose()
            raise
        self._model, self._info = model, model.info
        logger.info("loaded model %s in %.1f s", self.name, time.perf_counter() - started_at)
        return model

    def _loading_ended(self, loading: asyncio.Task[BitNet]) -> None:
        self._loading = None
        if not loading.cancelled():
            loading.exception()  # was raised for those who waited, if there still were any
        self._watch_idleness()

    def _expire(self) -> None:
        self._timer = None
        model, self._model = self._model, None
        if model is not None:
            logger.info("unloading model %s, which nobody used for %g s", self.name, self._keep_alive)
            self._closing = asyncio.get_running_loop().create_task(model.aclose())

    async def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._loading is not None:
            await asyncio.wait([self._loading])
        model, self._model = self._model, None
        if model is not None:
            await model.aclose()


class ServedModels(Mapping[str, ServedModel]):
    """All models by name. The first is the one for requests that name none."""

    def __init__(self, sources: Mapping[str, ModelSource], *, keep_alive: float) -> None:
        self._models = {name: ServedModel(name, source, keep_alive) for name, source in sources.items()}
        if not self._models:
            raise ValueError("there is no model to serve")
        self._closed = False

    def __getitem__(self, name: str) -> ServedModel:
        return self._models[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._models)

    def __len__(self) -> int:
        return len(self._models)

    @property
    def default(self) -> ServedModel:
        return next(iter(self._models.values()))

    def find(self, name: object) -> ServedModel:
        """The model a request asks for. Raises ApiError."""
        if self._closed:
            raise EngineClosedError("the server has closed its models")
        if name is None:
            return self.default
        if not isinstance(name, str):
            raise ApiError(400, "model must be a string", param="model")
        found = self._models.get(name)
        if found is None:
            known = ", ".join(self._models)
            raise ApiError(
                404,
                f"there is no model {name!r:.200} here; known: {known}",
                param="model",
                code="model_not_found",
            )
        return found

    async def close(self) -> None:
        self._closed = True
        for model in self._models.values():
            await model.close()
