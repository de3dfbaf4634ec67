"""What Orbit and its guide call: BitNetInference, the class its bundled provider imports, and BitNetService,
the service of the guide. Both are thin: a configuration, and a BitNet made of it.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
from collections.abc import AsyncIterator, Generator, Iterable, Iterator, Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any

from bitnet import config as schema
from bitnet.errors import BitNetError
from bitnet.model import BitNet
from bitnet.orbit_text import OrbitText

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from bitnet.config import BitNetConfig, ConfigLike
    from bitnet.engines.generation import Generation
    from bitnet.values import Delta, GenerateOptions, MessageLike, Reply

logger = logging.getLogger("bitnet")


class BitNetInference:
    """A model as Orbit's bundled provider uses it. Everyone else is better served by bitnet.BitNet.

    Any number of threads may use it at the same time, and objects with the same options share one loaded
    model. Texts come as bitnet.orbit_text.OrbitText.
    """

    def __init__(
        self,
        model_path: str,
        *,
        quant_type: str = "i2_s",
        use_pretuned: bool = True,
        quant_embd: bool = False,
        n_ctx: int = 2048,
        n_threads: int = 8,
        n_batch: int = 2,
        n_gpu_layers: int = 0,
        main_gpu: int = 0,
        low_vram: bool = False,
        use_mmap: bool = True,
        use_mlock: bool = False,
        kernel_params: Mapping[str, Any] | None = None,
        verbose: bool = False,
    ) -> None:
        """Load a model. The arguments are keys of the schema (config/bitnet.yaml), and may be strings, as
        Orbit gives what comes from the environment.

        kernel_params: with `stream: eager`, `generate_stream` makes the whole answer before it returns; with
        `seed`, the same question gets the same answer.
        Raises ConfigError and what BitNet() raises.
        """
        _warn_of_namesake()
        settings = schema.load(
            {
                "model_path": model_path,
                "quant_type": quant_type,
                "use_pretuned": use_pretuned,
                "quant_embd": quant_embd,
                "n_ctx": n_ctx,
                "n_threads": n_threads,
                "n_batch": n_batch,
                "n_gpu_layers": n_gpu_layers,
                "main_gpu": main_gpu,
                "low_vram": low_vram,
                "use_mmap": use_mmap,
                "use_mlock": use_mlock,
                "kernel_params": kernel_params,
                "verbose": verbose,
            }
        )
        self._eager = settings.kernel_params.stream == "eager"
        self._model = BitNet.from_config(settings)

    def generate(
        self,
        prompt: str = "",
        messages: Iterable[MessageLike] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> dict[str, Any]:
        """Answer messages, or a prompt as one message: {"text", "finish_reason", "usage"}."""
        reply = _ask(self._model, prompt, messages, options).result()
        return {
            "text": OrbitText(reply.text),
            "finish_reason": reply.finish_reason,
            "usage": reply.usage.to_dict(),
        }

    def generate_stream(
        self,
        prompt: str = "",
        messages: Iterable[MessageLike] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Iterable[dict[str, str]]:
        """`generate`, a piece {"text"} at a time.

        Orbit calls this on a thread and iterates the result on its event loop. So the prompt is computed
        here, up to the first piece, and the loop waits for single tokens only; if that is too long, see
        `eager` in kernel_params. Closing or dropping the result stops the computation.
        """
        pieces = _Pieces(_ask(self._model, prompt, messages, options))
        return list(pieces) if self._eager else pieces

    def close(self) -> _Done:
        """Free the model, if no other object uses it. May be repeated, and awaited, but need not be."""
        self._model.close()
        return _Done()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"BitNetInference({self._model!r})"


class _Pieces(Iterator[dict[str, str]]):
    """The texts of a generation. The first one is there when this is made.

    A plain iterator without locks: one that is left in the middle, on whichever thread, just drops its
    generation, which stops the computation.
    """

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self._first: Delta | None = next(generation, None)

    def __next__(self) -> dict[str, str]:
        while True:
            delta = self._first or next(self._generation)
            self._first = None
            if delta.text:
                return {"text": OrbitText(delta.text)}

    def close(self) -> None:
        self._generation.close()


class _Done:
    """What may be awaited, and is done already."""

    def __await__(self) -> Generator[None, None, None]:
        return
        yield


class BitNetService:
    """A model behind the calls of Orbit's services: initialize, generate, generate_stream, close,
    verify_connection.

        service = BitNetService("config/bitnet.yaml")
        await service.initialize()
        print(await service.generate("Hello, how are you?"))

    Works from any event loop and from several at a time. It loads when it is first used, if `initialize` was
    not called, and again after `close`.
    """

    def __init__(self, config: ConfigLike | BitNetConfig | None = None, **overrides: Any) -> None:
        """The arguments are those of BitNet.from_config. Raises ConfigError."""
        self.config = schema.load(config, **overrides)
        self._lock = threading.Lock()  # held while it loads and closes, on threads only
        self._model: BitNet | None = None

    @property
    def initialized(self) -> bool:
        return self._model is not None

    async def initialize(self) -> bool:
        """Load the model, or prepare to ask the server. Returns True, or raises what BitNet.from_config
        raises.

        A caller who is cancelled leaves the loading to the next one.
        """
        await self._ready()
        return True

    async def _ready(self) -> BitNet:
        model = self._model
        return await asyncio.to_thread(self._open) if model is None else model

    def _open(self) -> BitNet:
        with self._lock:
            if self._model is None:
                self._model = BitNet.from_config(self.config)
            return self._model

    async def generate(
        self,
        prompt: str = "",
        *,
        messages: Iterable[MessageLike] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> str:
        """The answer to messages, or to a prompt as one message. Cancelling the task stops the
        computation."""
        return (await self.reply(prompt, messages=messages, **options)).text

    async def reply(
        self,
        prompt: str = "",
        *,
        messages: Iterable[MessageLike] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Reply:
        """`generate`, with token counts, timings and tool calls."""
        return await (await self._start(prompt, messages, options)).aresult()

    async def generate_stream(
        self,
        prompt: str = "",
        *,
        messages: Iterable[MessageLike] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> AsyncIterator[str]:
        """`generate`, a piece at a time; in one piece if the configuration says `stream: false`."""
        generation = await self._start(prompt, messages, options)
        try:
            if not self.config.stream:
                yield (await generation.aresult()).text
                return
            async for delta in generation:
                if delta.text:
                    yield delta.text
        finally:
            generation.cancel()

    async def _start(
        self, prompt: str, messages: Iterable[MessageLike] | None, options: GenerateOptions
    ) -> Generation:
        """On a thread, because tokens of a long prompt take longer than an event loop may stand still."""
        return await asyncio.to_thread(_ask, await self._ready(), prompt, messages, options)

    async def verify_connection(self) -> bool:
        """Whether requests can be answered: the model is loaded, or the server answers."""
        try:
            model = await self._ready()
            return await asyncio.to_thread(model.is_healthy)
        except (BitNetError, OSError) as error:
            logger.warning("bitnet is not available: %s", error)
            return False

    async def close(self) -> None:
        """Free the model, if no other object uses it, or the connections. May be repeated."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        with self._lock:
            model, self._model = self._model, None
        if model is not None:
            model.close()

    async def __aenter__(self) -> Self:
        await self.initialize()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()


def _ask(
    model: BitNet,
    prompt: str,
    messages: Iterable[MessageLike] | None,
    options: GenerateOptions,
) -> Generation:
    """Start an answer. Messages win over the prompt; a model without a chat format continues the prompt, or
    else the messages' texts."""
    messages = list(messages or [{"role": "user", "content": prompt}])
    if model.info.has_chat_template:
        return model.stream_chat(messages, **options)
    if not prompt:
        contents = (
            message["content"] if isinstance(message, Mapping) else message.content for message in messages
        )
        prompt = "\n".join(content for content in contents if isinstance(content, str))
    return model.stream(prompt, **options)


@functools.cache
def _warn_of_namesake() -> None:
    """An unrelated distribution on PyPI has our import name: in one environment, neither of them is whole."""
    try:
        version = metadata.version("bitnet")
    except metadata.PackageNotFoundError:
        return
    logger.warning(
        "the unrelated distribution 'bitnet' %s is installed in the same place as bitnet-cpp; run "
        "'pip uninstall bitnet', then 'pip install --force-reinstall bitnet-cpp'",
        version,
    )
