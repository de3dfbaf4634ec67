"""The forward pass through llama.cpp, by the bindings of llama-cpp-python.

A block of keys and values is a whole sequence of llama.cpp's there. All of them share one store, in which
what two sequences have in common stands once.
"""

from __future__ import annotations

import ctypes
import logging
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from bitnet import _native
from bitnet.errors import CancelledError, DeviceError, ModelFileError, ValidationError
from bitnet.runtime.runner import check_finite, check_step, logprob
from bitnet.values import KvType

library: Any = import_module("llama_cpp")  # generated bindings, without types

MAX_BATCH_TOKENS = 512
MAX_SEQUENCES: int = library.llama_max_parallel_sequences()
_KV_TYPES = {"f16": 1, "q8_0": 8}  # of enum ggml_type
_KV_BYTES = {"f16": 2.0, "q8_0": 34 / 32}
_ABORTED = 2  # what llama_decode returns

logger = logging.getLogger("bitnet.llama_cpp")

# What llama.cpp reports as an error, by the thread that called it.
_said = threading.local()
_ERROR = 4  # of enum ggml_log_level; llama-cpp-python takes it for another
_kept: list[object] = []  # what llama.cpp may call for ever


@contextmanager
def errors() -> Iterator[list[str]]:
    """The errors that llama.cpp reports while this thread calls it."""
    before = getattr(_said, "lines", None)  # of whom a garbage collection has interrupted
    _said.lines = lines = list[str]()
    try:
        yield lines
    finally:
        _said.lines = before


def _reason(said: list[str]) -> str:
    """The first error, which the others follow from, without the function's name."""
    return re.sub(r"^\w+: (error loading model: )?", "", said[0]) if said else "it does not say why"


def _listen() -> None:
    """Hear what llama.cpp says. What other threads do with it is told to who listened before."""
    before, data = library.llama_log_callback(), ctypes.c_void_p()
    library.llama_log_get(ctypes.byref(before), ctypes.byref(data))

    @library.llama_log_callback  # type: ignore[untyped-decorator]  # see library
    def hear(level: int, text: bytes, user_data: int | None) -> None:
        lines = getattr(_said, "lines", None)
        if lines is None:
            if before:
                before(level, text, user_data)
            return
        line = text.decode(errors="replace").strip()
        if line:
            logger.debug("%s", line)
        if level == _ERROR and line:
            lines.append(line)

    library.llama_log_set(hear, data)
    _kept.append(hear)


class LlamaCppModel:
    """Weights that llama.cpp has loaded, and freed with this object.

    Raises ModelFileError with what llama.cpp says of a file it does not load.
    """

    def __init__(
        self, path: str, *, n_gpu_layers: int, main_gpu: int, use_mmap: bool, use_mlock: bool
    ) -> None:
        self.handle: Any = None
        library.llama_backend_init()
        parameters = library.llama_model_default_params()
        parameters.n_gpu_layers = n_gpu_layers
        parameters.split_mode = library.LLAMA_SPLIT_MODE_NONE
        parameters.main_gpu = main_gpu if n_gpu_layers else -1
        parameters.load_mode = {
            (False, False): library.LLAMA_LOAD_MODE_NONE,
            (True, False): library.LLAMA_LOAD_MODE_MMAP,
            (False, True): library.LLAMA_LOAD_MODE_MLOCK,
            (True, True): library.LLAMA_LOAD_MODE_MMAP_MLOCK,
        }[use_mmap, use_mlock]
        with errors() as said:
            handle = library.llama_model_load_from_file(path.encode(), parameters)
        if not handle:
            raise ModelFileError(f"{path}: llama.cpp cannot load it: {_reason(said)}")
        self.handle = handle
        vocabulary = library.llama_model_get_vocab(handle)
        assert vocabulary is not None
        self.vocabulary: Any = vocabulary
        self.vocab_size: int = library.llama_vocab_n_tokens(vocabulary)
        self.context_length: int = library.llama_model_n_ctx_train(handle)
        self.n_layers: int = library.llama_model_n_layer(handle)
        self.hidden_size: int = library.llama_model_n_embd(handle)
        self.n_heads: int = library.llama_model_n_head(handle)
        self.n_kv_heads: int = library.llama_model_n_head_kv(handle)
        self.n_parameters: int = library.llama_model_n_params(handle)
        self.n_bytes: int = library.llama_model_size(handle)

    @property
    def other_kind(self) -> str | None:
        """What makes it a model that does not continue texts, or whose sequences cannot be cut anywhere."""
        kinds = {
            "is recurrent": library.llama_model_is_recurrent(self.handle),
            "is partly recurrent": library.llama_model_is_hybrid(self.handle),
            "writes by diffusion": library.llama_model_is_diffusion(self.handle),
            "has an encoder": library.llama_model_has_encoder(self.handle),
            "has no decoder": not library.llama_model_has_decoder(self.handle),
        }
        return next((kind for kind, holds in kinds.items() if holds), None)

    def tokenize(self, text: str) -> list[int]:
        """llama.cpp's own tokens of a text, without any that are special."""
        data = text.encode()
        room = len(data) + 8
        while True:
            ids = (library.llama_token * room)()
            n = library.llama_tokenize(self.vocabulary, data, len(data), ids, room, False, False)
            if n >= 0:
                return list(ids[:n])
            room = -n

    def __del__(self) -> None:
        if self.handle is not None:
            with errors():
                library.llama_model_free(self.handle)
            self.handle = None


class LlamaCppRunner:
    """Implements bitnet.runtime.runner.Runner."""

    max_batch_tokens = MAX_BATCH_TOKENS
    tiles: dict[str, int] = {}  # noqa: RUF012  (llama.cpp chooses)
    gpu_bytes = 0  # llama.cpp does not say

    def __init__(
        self,
        model: LlamaCppModel,
        *,
        block_size: int,
        n_blocks: int,
        n_threads: int,
        kv_type: KvType,
        head_dim: int,
        n_gpu_layers: int,
        low_vram: bool,
    ) -> None:
        """block_size: positions of a sequence; n_blocks: sequences."""
        self._model = model
        self.block_size = block_size
        self.n_blocks = n_blocks
        self.n_threads = n_threads
        self.n_gpu_layers = n_gpu_layers
        self.kernels = f"llama.cpp {'gpu' if n_gpu_layers else 'cpu'}"
        self._flag = _native.Flag()  # set by who cancels, read within a step
        parameters = library.llama_context_default_params()
        parameters.n_ctx = block_size * n_blocks
        parameters.n_batch = parameters.n_ubatch = MAX_BATCH_TOKENS
        parameters.n_seq_max = n_blocks
        parameters.n_threads = parameters.n_threads_batch = n_threads
        parameters.type_k = parameters.type_v = _KV_TYPES[kv_type]
        parameters.offload_kqv = not low_vram
        parameters.kv_unified = True
        parameters.swa_full = True  # else a sequence could not be cut back
        parameters.pooling_type = library.LLAMA_POOLING_TYPE_NONE
        parameters.no_perf = True
        # The address of a function in native code: the interpreter is not asked while it computes.
        parameters.abort_callback = library.ggml_abort_callback(self._flag.reader)
        parameters.abort_callback_data = self._flag.address
        with errors() as said:
            context = library.llama_init_from_model(model.handle, parameters)
        if not context:
            raise DeviceError(
                f"llama.cpp cannot make a context of {n_blocks} sequences of {block_size} tokens: "
                f"{_reason(said)}. If memory was not enough, load the model with a smaller n_ctx or n_batch"
            )
        self._context: Any = context
        self._memory = library.llama_get_memory(context)
        self._batch = library.llama_batch_init(MAX_BATCH_TOKENS, 0, 1)
        values_per_token = 2 * model.n_layers * model.n_kv_heads * head_dim
        self.kv_bytes = int(block_size * n_blocks * values_per_token * _KV_BYTES[kv_type])
        self._lengths = [0] * n_blocks  # of the sequences, as llama.cpp has them
        self._step: list[
            tuple[int, int, int]
        ] = []  # sequences, where they began, and how many tokens followed
        self._outputs: list[int] = []
        self._with_hidden = self._wants_hidden = False
        self._failed: DeviceError | None = None

    def __del__(self) -> None:
        if getattr(self, "_context", None) is not None:
            with errors():  # which keeps its remarks to itself
                library.llama_batch_free(self._batch)
                library.llama_free(self._context)
            self._context = None

    def cancel(self) -> None:
        """Stops the step under way, where a CPU computes it."""
        self._flag.set()

    def forward(
        self,
        token_ids: NDArray[np.int32],
        block_tables: Sequence[Sequence[int]],
        starts: Sequence[int],
        lengths: Sequence[int],
        outputs: Sequence[int],
    ) -> None:
        n = len(token_ids)
        check_step(n, lengths, MAX_BATCH_TOKENS)
        sequences = [table[0] for table in block_tables]
        batch = self._batch
        batch.n_tokens = n
        _array(batch.token, n)[:] = token_ids
        positions, owners = _array(batch.pos, n), np.empty(n, np.int32)
        first = 0
        for sequence, start, length in zip(sequences, starts, lengths, strict=True):
            positions[first : first + length] = range(start, start + length)
            owners[first : first + length] = sequence
            first += length
        for index, owner in enumerate(owners.tolist()):
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = owner
        wanted = np.zeros(n, np.int8)
        wanted[list(outputs)] = 1
        _array(batch.logits, n)[:] = wanted
        self._step, self._outputs = list(zip(sequences, starts, lengths, strict=True)), list(outputs)
        # Who asked for hidden states in the last step will do so again.
        self._give_hidden(self._wants_hidden)
        self._wants_hidden = False
        self._decode()

    def _decode(self) -> None:
        if self._failed is not None:
            raise self._failed
        for sequence, start, _ in self._step:
            if self._lengths[sequence] != start and not library.llama_memory_seq_rm(
                self._memory, sequence, start, -1
            ):
                self._fail("a sequence cannot be cut back")
            self._lengths[sequence] = -1  # unknown, should the step fail
        with errors() as said:
            result = library.llama_decode(self._context, self._batch)
        if result == _ABORTED:
            self._flag.take()
            raise CancelledError("the step was cancelled")
        if result != 0:
            self._fail(_reason(said) if said else f"llama_decode returned {result}")
        for sequence, start, length in self._step:
            self._lengths[sequence] = start + length

    def _give_hidden(self, wanted: bool) -> None:
        if self._with_hidden != wanted:
            self._with_hidden = wanted
            with errors():
                library.llama_set_embeddings(self._context, wanted)

    def _fail(self, reason: str) -> NoReturn:
        self._failed = DeviceError(
            f"llama.cpp failed: {reason.rstrip('.')}. Load the model again; with engine set to native it is "
            "computed without llama.cpp"
        )
        raise self._failed

    def _row(self, output: int) -> NDArray[np.float32]:
        pointer = library.llama_get_logits_ith(self._context, self._outputs[output])
        if not pointer:
            raise ValidationError(f"output row {output} does not exist")
        row = np.ctypeslib.as_array(pointer, (self._model.vocab_size,))
        check_finite(row)
        return row

    def logits(self) -> NDArray[np.float32]:
        rows = [self._row(output) for output in range(len(self._outputs))]
        return np.stack(rows) if rows else np.empty((0, self._model.vocab_size), np.float32)

    def logprobs(self, target_ids: NDArray[np.int32], first_output: int = 0) -> list[float]:
        return [
            logprob(self._row(first_output + index), target)
            for index, target in enumerate(target_ids.tolist())
        ]

    def hidden(self) -> NDArray[np.float32]:
        size = self._model.hidden_size
        if not self._outputs:
            return np.empty((0, size), np.float32)
        self._wants_hidden = True
        if not self._with_hidden:
            # llama.cpp gives hidden states of whole steps only, and computes all logits then, too: a step is
            # computed again for those who want them.
            self._give_hidden(True)
            self._decode()
        rows = []
        for index in self._outputs:
            pointer = library.llama_get_embeddings_ith(self._context, index)
            if not pointer:
                self._fail("it gives no hidden states of this model")
            rows.append(np.array(np.ctypeslib.as_array(pointer, (size,))))
        values = np.stack(rows)
        check_finite(values)
        return values

    def sample(self, output: int, sampler: _native.Sampler, logprobs: int = -1) -> _native.Sampled:
        return sampler.sample(self._row(output), logprobs)

    def copy_block(self, source: int, target: int) -> None:
        library.llama_memory_seq_rm(self._memory, target, -1, -1)
        library.llama_memory_seq_cp(self._memory, source, target, -1, -1)
        self._lengths[target] = self._lengths[source]


def _array(pointer: Any, n: int) -> NDArray[Any]:
    return np.ctypeslib.as_array(pointer, (n,))


_listen()
