"""BitNet: the one object users hold. It turns calls into requests, and hands them to an engine.

Every way to ask exists for threads and for event loops, under the same name with an `a` in front. Which
engine that is, and who else uses it, is the registry's business.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from bitnet import load_options, logs, models
from bitnet.engines import deadline, selection
from bitnet.engines.generation import DeferredGeneration
from bitnet.engines.local import context_size
from bitnet.engines.registry import Lease
from bitnet.errors import ValidationError
from bitnet.models import overrides
from bitnet.models.header import read_header
from bitnet.values import (
    Activation,
    EmbdType,
    EmbeddingKind,
    EmbeddingRequest,
    EngineChoice,
    GenerateOptions,
    Health,
    KvType,
    Layout,
    ModelInfo,
    Pooling,
    QuantType,
    Reply,
    Request,
    Sampling,
    Scales,
    as_choice,
    as_flag,
    as_integer,
    as_number,
    as_text,
    as_token_ids,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from pydantic import SecretStr
    from typing_extensions import Self, Unpack

    from bitnet.config import BitNetConfig, ConfigLike
    from bitnet.engines import Engine
    from bitnet.engines.generation import Generation
    from bitnet.models.header import ModelHeader
    from bitnet.values import MessageLike


class BitNet:
    """A model. May be used from any number of threads and event loops at the same time.

        model = BitNet()                          # bundled; or BitNet("model.gguf"), BitNet("2b-4t")
        model.generate("Once upon a time").text
        for delta in model.stream_chat([{"role": "user", "content": "Hi"}]):
            print(delta.text, end="")

    The options of generate, stream, chat, stream_chat and their async siblings are the fields of
    bitnet.Request (max_tokens, n, stop, ignore_eos, logprobs, top_logprobs, response_format, tools,
    tool_choice, parallel_tool_calls, template_args, cache_salt) and of bitnet.Sampling
    (temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty, seed,
    logit_bias). All of them raise ValidationError, ContextOverflowError if the prompt does not fit,
    OverloadedError if too many requests wait, EngineClosedError.

    Objects for the same file and the same options share one loaded model, which is freed when the last of
    them is closed or garbage collected. They can be pickled and copied: what travels is the file's path and
    the options, and the copy loads the model when it is first used. After os.fork() the child process may use
    them too; generations under way stay with the parent.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        n_ctx: int | None = None,
        n_threads: int = 0,
        n_batch: int = 2,
        kv_type: KvType = "f16",
        speculate: bool = True,
        use_mmap: bool = True,
        use_mlock: bool = False,
        quant_type: QuantType = "i2_s",
        use_pretuned: bool = True,
        kernel_params: Mapping[str, int] | None = None,
        embd_type: EmbdType | None = None,
        engine: EngineChoice = "auto",
        layout: Layout | None = None,
        tl_config: str | os.PathLike[str] | None = None,
        activation: Activation | None = None,
        scales: Scales | None = None,
        metadata_overrides: Mapping[str, str | int | bool] | None = None,
        n_gpu_layers: int = 0,
        main_gpu: int = 0,
        low_vram: bool = False,
        kv_tokens: int | None = None,
        max_waiting: int = 1024,
        keep_alive: float = 0,
        timeout: float | Mapping[str, int] | None = None,
        defaults: GenerateOptions | None = None,
        lazy: bool = False,
        base_url: str | None = None,
        api_key: str | SecretStr | None = None,
        retry: bool | Mapping[str, Any] | None = None,
        verify: bool | str = True,
        proxy: str | None = None,
    ) -> None:
        """Load a model, or connect to a server that has one (base_url).

        model: path of a GGUF file or of a Hugging Face folder, which is converted once; a name that `bitnet
            list --remote` shows, or org/name[@revision][:file] on the Hugging Face Hub, which is downloaded
            if it is not here; None = the model bundled with this package.
        n_ctx: tokens a sequence (prompt and answer) may hold; 0 = the model's own limit; None = 2048, or
            that limit if it is smaller.
        n_threads: compute threads; 0 = physical cores; never more than those.
        n_batch: requests computed together; memory for keys and values grows with it.
        kv_type: how keys and values are stored: "f16", or "q8_0" in half the memory, which moves the logits a
            little.
        speculate: guess tokens of an answer from its prompt and itself, and compute several in one step where
            the guesses prove right. Answers are the same, and those that repeat their prompt come faster.
        kv_tokens: tokens whose keys and values are held for all requests together, n_ctx at least; None = as
            many as n_batch full contexts have. With fewer, requests that do not fit wait, or make way and are
            computed again: their answers stay the same.
        use_mmap: keep the packed weights of large models in the user's cache directory and map them from
            there, shared between processes; False = in private memory.
        use_mlock: keep the weights from being swapped out.
        quant_type: how ternary products are computed: "i2_s" multiplies and adds, except that many tokens
            together (a prompt) look up tables where that is faster on this processor; "tl1" always looks up
            tables. The results are the same bits.
        use_pretuned: use the tile sizes that come with the package for this processor, else safe ones; False
            = measure which are fastest when a model is first loaded, and keep them in the cache directory.
        kernel_params: tile sizes to use as they are: table_min_tokens, row_block, pieces_per_thread (see
            bitnet.engines.tiles).
        embd_type: what embedding and output head are kept as: "f32", "f16", "q8_0", "q6_k" or "q4_0"; None =
            as the file has them. A narrower type saves memory and time, and changes the output a little.
        layout: how the ternary tensors of the file are laid out, which it does not say itself. I2_S: "x128",
            the default, as in all published files; "arm64", what bitnet.cpp's llama-quantize makes on ARM
            since November 2025; "row4", what it makes without ACT_PARALLEL. TL1: "preset", the tiles of
            bitnet.cpp's preset kernels. A wrong layout gives gibberish; "auto": each predicts a small
            text, and the best is kept and remembered.
        tl_config: the kernel_config.ini that a TL1 or TL2 file was made with; None = the tiles that
            bitnet.cpp's setup_env.py makes for bitnet_b1_58-large, bitnet_b1_58-3B and Llama3-8B-1.58.
        activation: "relu2" or "silu": that of the feed-forward network, where the name of the architecture
            ("bitnet", "bitnet-b1.58") stands for models of both kinds; None = the one it was made for, except
            that the vocabularies of the known models tell them apart.
        scales: whether ternary codes are multiplied by the file's scales, "multiply", or divided, "divide",
            as some converters have them the wrong way round; "auto" = found out, likewise; None = "auto" with
            layout="auto", else "multiply".
        metadata_overrides: what is known better than by the file (see bitnet.models.overrides), such as
            {"tokenizer.ggml.pre": "llama-bpe"}, a chat template, the token that ends a turn, or the pooling.
        engine: who computes. "native": this package's own kernels. "mlx": Apple's MLX, on the GPU where it
            has one (pip install 'bitnet-cpp[mlx]'). "llama_cpp": llama.cpp, for its GPUs and for models that
            are no BitNet (pip install 'bitnet-cpp[llama-cpp]'). "auto": native; but mlx on Apple silicon if
            n_gpu_layers is not 0.
        n_gpu_layers: layers to compute on a GPU, from the first one on: 0 = none, -1 = all, with embedding
            and head; mlx computes all or none. main_gpu: which one. low_vram: keep keys and values, embedding
            and head in the host's memory. NVIDIA: the results are the same bits, and a build with the CUDA
            library is needed (see README.md). llama_cpp: what llama-cpp-python was built for.
        max_waiting: requests that may wait for their turn, above which they are refused with OverloadedError.
        keep_alive: seconds the model stays loaded after it was closed by all who use it; negative = until
            bitnet.unload_all().
        timeout: seconds an answer may take, above which it ends with DeadlineError; 0 = no limit. Or
            {"connect": ..., "total": ...} in milliseconds. None = no limit, of a server 10 and 120 seconds.
        defaults: options of generate, chat and their siblings, for calls that do not say otherwise.
        lazy: load when it is first used; only whether the file exists is checked now.
        base_url: api mode: a server that answers in place of a model here, such as http://localhost:8080:
            `bitnet serve`, llama-server or any other that speaks OpenAI's API. `model` is a name there, None
            = the only one. Of the options above, keep_alive, timeout, defaults and lazy apply.
        api_key, retry, verify, proxy: of that server, see bitnet.engines.http.HttpEngine.
        Raises ModelNotFoundError, DownloadError, ConversionError, ModelFileError, DeviceError (no GPU, or too
        little memory on it) and ValidationError; if lazy, the latter three may be raised when it is first
        used instead.
        """
        logs.obey_environment()
        given = locals()  # the options by their names
        local = {name: given[name] for name in load_options.NAMES}
        remote = {"api_key": api_key, "retry": retry, "verify": verify, "proxy": proxy}
        refuse_given = partial(load_options.refuse_given, BitNet.__init__)
        if base_url is not None:
            from bitnet.engines import http  # late: its client takes long to import

            refuse_given(local, "is for a model in this process, and base_url names a server")
            server = http.engine_options(base_url, model=model, timeout=timeout, **remote)
            keep_alive = as_number("keep_alive", keep_alive, -math.inf, math.inf)
            self._path: str | None = None
            self._base_url: str | None = server["base_url"]
            self._arguments: dict[str, Any] = {**server, "keep_alive": keep_alive, "defaults": defaults}
            self._set_defaults(0, defaults)  # the engine keeps its own time
            self._lease = Lease.of_server(http.connected_engine, server, keep_alive)
            if not as_flag("lazy", lazy):
                self._load_or_close()
            return
        refuse_given(remote, "is for a server, and there is no base_url")
        self._base_url = None
        if isinstance(timeout, Mapping):
            from bitnet.engines.http import as_timeout

            timeout = as_timeout(timeout).total / 1000
        options = load_options.check(local)
        load, engine_options = selection.choose(options.engine, **options.gpu)
        keep_alive = as_number("keep_alive", keep_alive, -math.inf, math.inf)
        as_flag("lazy", lazy)
        # Absolute, because it may be loaded, or loaded again, in another working directory.
        path = Path(os.path.abspath(models.find(model)))
        self._path = str(path)
        self._arguments = {
            # The bundled model may be elsewhere where the object is unpickled.
            "model": None if model is None else self._path,
            **options.arguments,
            "keep_alive": keep_alive,
            "timeout": timeout,
            "defaults": defaults,
        }
        self._set_defaults(timeout or 0, defaults)
        self._lease = Lease.of_file(load, path, {**options.model, **engine_options}, keep_alive)
        if not lazy:
            self._load_or_close()

    def _load_or_close(self) -> None:
        try:
            self.load()
        except BaseException:
            self._lease.close()
            raise

    @classmethod
    def from_config(
        cls,
        config: ConfigLike | BitNetConfig | None = None,
        *,
        kv_tokens: int | None = None,
        max_waiting: int = 1024,
        keep_alive: float = 0,
        lazy: bool = False,
        **overrides: Any,
    ) -> Self:
        """The model that a configuration describes: a YAML file, or a mapping as one would have it.

        config: None = the file that $BITNET_CONFIG names, else the defaults of the schema, which
            config/bitnet.yaml explains. `mode: direct` loads a model file, `mode: api` asks a server.
        overrides: keys of the schema that win over the configuration, such as n_ctx=4096.
        The other options are those of BitNet(). Raises ConfigError, and what loading raises.
        """
        from bitnet.config import load

        settings = load(config, **overrides)
        if settings.verbose:
            logs.be_verbose()
        if settings.mode == "direct":
            return cls(
                **settings.direct_options(),
                kv_tokens=kv_tokens,
                max_waiting=max_waiting,
                keep_alive=keep_alive,
                lazy=lazy,
            )
        return cls(**settings.server_options(), keep_alive=keep_alive, lazy=lazy)

    @classmethod
    def from_engine(cls, engine: Engine) -> Self:
        """Around an engine of your own, such as bitnet.testing.FakeEngine, which is closed with this object.

        It can be copied, and copies share the engine, but not pickled.
        """
        self = cls.__new__(cls)
        self._path = self._base_url = None
        self._arguments = {}
        self._set_defaults(0, None)
        self._lease = Lease.of_engine(engine)
        return self

    def _set_defaults(self, timeout: float, defaults: Mapping[str, Any] | None) -> None:
        self._timeout = as_number("timeout", timeout, 0, 1e9)
        self._defaults: dict[str, Any] = dict(defaults or {})
        Request.build(prompt="checked now rather than with the first request", options=self._defaults)

    def _request(
        self,
        options: GenerateOptions,
        *,
        prompt: str | Iterable[int] | None = None,
        messages: Iterable[MessageLike] | None = None,
    ) -> Request:
        merged: dict[str, Any] = {**self._defaults, **options}
        if "sampling" in options:  # says all of it, except what is given beside it
            for name in Sampling.__dataclass_fields__.keys() - options.keys():
                merged.pop(name, None)
        return Request.build(prompt=prompt, messages=messages, options=merged)

    def load(self) -> None:
        """Load the model now, if it is not loaded.

        Raises ModelFileError, ValidationError and EngineClosedError.
        """
        self._lease.engine()

    @property
    def _engine(self) -> Engine:
        """For what can be known without computing: after `close`, the engine that was."""
        return self._lease.loaded or self._lease.engine()

    def generate(self, prompt: str | Iterable[int], **options: Unpack[GenerateOptions]) -> Reply:
        """Continue a text, or token ids, which are computed as they are."""
        return self.stream(prompt, **options).result()

    def stream(self, prompt: str | Iterable[int], **options: Unpack[GenerateOptions]) -> Generation:
        """`generate`, a Delta at a time; `.result()` of the returned Generation is the whole Reply."""
        return _submit(self._lease, self._request(options, prompt=prompt), self._timeout)

    def chat(self, messages: Iterable[MessageLike], **options: Unpack[GenerateOptions]) -> Reply:
        """Answer a conversation, given as bitnet.Message or {"role": ..., "content": ...}.

        Raises ChatTemplateError if the model has no chat template, or if it refuses these messages.
        """
        return self.stream_chat(messages, **options).result()

    def stream_chat(self, messages: Iterable[MessageLike], **options: Unpack[GenerateOptions]) -> Generation:
        """`chat`, a Delta at a time; `.result()` of the returned Generation is the whole Reply."""
        return _submit(self._lease, self._request(options, messages=messages), self._timeout)

    async def agenerate(self, prompt: str | Iterable[int], **options: Unpack[GenerateOptions]) -> Reply:
        """`generate` for event loops. Cancelling the task stops the computation."""
        return await self.astream(prompt, **options).aresult()

    def astream(self, prompt: str | Iterable[int], **options: Unpack[GenerateOptions]) -> Generation:
        """`stream` for event loops: not to be awaited, but iterated with `async for`.

        It begins with the first iteration, or with `aresult()`, which also load the model if it is not.
        """
        return self._deferred(self._request(options, prompt=prompt))

    async def achat(self, messages: Iterable[MessageLike], **options: Unpack[GenerateOptions]) -> Reply:
        """`chat` for event loops. Cancelling the task stops the computation."""
        return await self.astream_chat(messages, **options).aresult()

    def astream_chat(self, messages: Iterable[MessageLike], **options: Unpack[GenerateOptions]) -> Generation:
        """`stream_chat` for event loops: not to be awaited, but iterated with `async for`.

        It begins with the first iteration, or with `aresult()`, which also load the model if it is not.
        """
        return self._deferred(self._request(options, messages=messages))

    def _deferred(self, request: Request) -> Generation:
        lease, timeout = self._lease, self._timeout
        return DeferredGeneration(
            lambda: _submit(lease, request, timeout), lambda: lease.submits_at_once(request)
        )

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Token ids of `text`.

        add_special: with the tokens the model expects around a text, as `generate` has them.
        parse_special: special tokens that are written out in the text become those tokens.
        """
        return self._engine.tokenize(
            as_text("text", text), add_special=add_special, parse_special=parse_special
        )

    def detokenize(self, token_ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of token ids. skip_special: without the special tokens among them."""
        return self._engine.detokenize(list(token_ids), skip_special=skip_special)

    def vocabulary(self) -> Sequence[bytes]:
        """The bytes of every token, by its id; of special tokens the name."""
        return self._engine.vocabulary()

    def render(self, messages: Iterable[MessageLike], **options: Unpack[GenerateOptions]) -> str:
        """The prompt that `chat` makes of a conversation, and of tools if there are any, as text.

        Special tokens are written out: the text is for showing. Raises ChatTemplateError.
        """
        return self._engine.render(Request.build(messages=messages, options=options))

    def count_tokens(self, prompt: str | Iterable[MessageLike], **options: Unpack[GenerateOptions]) -> int:
        """Tokens of the prompt that `generate` makes of a text, or `chat` of a conversation."""
        if isinstance(prompt, str):
            return self._engine.count_tokens(Request.build(prompt=prompt, options=options))
        return self._engine.count_tokens(Request.build(messages=prompt, options=options))

    def logits(
        self, token_ids: Iterable[int], *, first: int = 0, cache_salt: str | None = None
    ) -> NDArray[np.float32]:
        """[len(token_ids) - first, vocab_size], float32: the logits of what follows each token from `first`
        on.

        The ids are computed as they are, in turn with other requests.
        cache_salt: tokens that calls with the same salt computed before are not computed again; None = all
            are computed.
        Raises ValidationError, ContextOverflowError.
        """
        ids = as_token_ids("token_ids", token_ids)
        as_integer("first", first, 0, len(ids) - 1)
        return self._lease.engine().logits(ids, first=first, cache_salt=cache_salt)

    def logprobs(self, token_ids: Iterable[int], *, first: int = 1) -> NDArray[np.float64]:
        """[len(token_ids) - first], float64: the log-probability (natural logarithm, temperature 1) of each
        token from `first` on, given all tokens before it.

        Memory does not grow with the vocabulary times the length, as that of `logits` does. Raises
        ValidationError, also for fewer than two tokens, and ContextOverflowError.
        """
        ids = as_token_ids("token_ids", token_ids)
        if len(ids) < 2:
            raise ValidationError(
                "token_ids must hold two tokens at least: what precedes the first is not known",
                field="token_ids",
            )
        as_integer("first", first, 1, len(ids) - 1)
        return self._lease.engine().logprobs(ids, first=first)

    def embed(
        self,
        texts: str | Iterable[str],
        *,
        kind: EmbeddingKind = "document",
        pooling: Pooling | None = None,
        normalize: bool = True,
        dimensions: int | None = None,
        prefix: str | None = None,
    ) -> NDArray[np.float32]:
        """[len(texts), dimensions or hidden_size], float32: a vector for each text. A single string is one
        text.

        kind: what the texts are in a search, "query" or "document"; matters for models that expect different
            words before each, which are put there if the catalog has them (`bitnet show`).
        pooling: "mean" of the hidden states of all tokens, or the "last" token's; None = as the model
            declares, which for a plain language model is the mean, for embedding models the last.
        normalize: scale each vector to the length 1.
        dimensions: [len(texts), dimensions] instead: the first numbers of each vector, scaled anew. Only
            embedding models (BitNet-embedding) are trained for that; others take no fewer than hidden_size.
        prefix: words to put before each text instead of those that the model is known to expect.
        A text's vector does not depend on the others: the same text gives the same bits. Raises
        ValidationError for an empty text, and ContextOverflowError for one that has more than n_ctx tokens,
        before anything is computed; ModelFileError for a vector that is not finite.
        """
        request = EmbeddingRequest.build(texts, kind, pooling, normalize, dimensions, prefix)
        return self._lease.engine().embed(request)

    async def aembed(
        self,
        texts: str | Iterable[str],
        *,
        kind: EmbeddingKind = "document",
        pooling: Pooling | None = None,
        normalize: bool = True,
        dimensions: int | None = None,
        prefix: str | None = None,
    ) -> NDArray[np.float32]:
        """`embed` for event loops. Cancelling the task stops the computation."""
        request = EmbeddingRequest.build(texts, kind, pooling, normalize, dimensions, prefix)
        if not (self._lease.ready or self._lease.closed):
            await asyncio.to_thread(self.load)
        return await self._lease.engine().aembed(request)

    def embedding_prefix(self, kind: EmbeddingKind = "document") -> str:
        """The words that `embed` puts before each text of this kind if it is not told others; "" = none.

        Those that a server puts there are not known here: "". May load the model.
        """
        as_choice("kind", kind, get_args(EmbeddingKind))
        return self.info.embedding_prefixes.get(kind, "")

    @property
    def n_ctx(self) -> int:
        """Tokens a sequence may hold: as `info` says, but without loading the model.

        Raises ModelFileError and ValidationError, like loading it.
        """
        header = self._header
        if header is None:
            return self.info.n_ctx
        return context_size(self._arguments["n_ctx"], header.context_length)

    @property
    def has_chat_template(self) -> bool:
        """Whether there is a chat template: as `info` says, but without loading the model.

        Before it is loaded, a template that turns out to be unusable counts as one.
        """
        header = self._header
        return self.info.has_chat_template if header is None else header.has_chat_template

    @property
    def _header(self) -> ModelHeader | None:
        """That of the file, if the model is not loaded."""
        if self._path is None or self._lease.loaded is not None:
            return None
        return read_header(Path(self._path), overrides.check(self._arguments["metadata_overrides"]))

    @property
    def info(self) -> ModelInfo:
        """What is loaded: name, architecture, sizes, memory, what was repaired."""
        return self._engine.info

    def is_healthy(self) -> bool:
        """Whether requests can be answered now; loads the model if it is not. Raises what loading raises."""
        if self._lease.engine().health().closed:
            return False
        if self._base_url is not None:  # what it told when it was first asked may no longer hold
            from bitnet.engines import http

            options = {
                name: value
                for name, value in self._arguments.items()
                if name not in ("keep_alive", "defaults")
            }
            http.connected_engine(**options).close()
        return True

    def health(self) -> Health | None:
        """How the engine is doing: requests, memory, steps computed. None = the model is not loaded."""
        engine = self._lease.loaded
        return None if engine is None else engine.health()

    def close(self) -> None:
        """End this object's generations, with EngineClosedError, and free the memory if no other uses it.

        May be repeated. Afterwards everything that computes raises EngineClosedError.
        """
        self._lease.close()

    async def aclose(self) -> None:
        """`close` for event loops."""
        await asyncio.to_thread(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.aclose()

    def __reduce__(self) -> tuple[Any, ...]:
        if self._path is not None or self._base_url is not None:
            return _restore, (type(self), self._arguments)
        raise TypeError("a BitNet.from_engine() cannot be pickled: its engine lives in this process")

    def __copy__(self) -> Self:
        """Another object for the same model, not closed even if this one is."""
        copy = type(self).__new__(type(self))
        copy.__dict__.update(self.__dict__)
        copy._lease = self._lease.copy()
        return copy

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.__copy__()

    def __repr__(self) -> str:
        engine = self._lease.loaded
        if self._base_url is not None:
            state = ", closed" if self._lease.closed else ""
            return f"BitNet({self._arguments['model']!r}, base_url={self._base_url!r}{state})"
        if engine is None:
            state = ", closed" if self._lease.closed else ", not loaded"
            return f"BitNet({self._path!r}{state})"
        info = engine.info
        state = ", closed" if self._lease.closed or engine.health().closed else ""
        return f"BitNet({info.path!r}, {info.n_parameters / 1e6:.1f} M parameters, n_ctx={info.n_ctx}{state})"


def _submit(lease: Lease, request: Request, timeout: float) -> Generation:
    generation = lease.submit(request)
    if timeout > 0:
        deadline.watch(generation, timeout)
    return generation


def _restore(cls: type[BitNet], arguments: dict[str, Any]) -> BitNet:
    return cls(**arguments, lazy=True)
