"""The native engine (C++): files, tensors, the forward pass, sampling. It releases the GIL while it
computes.

Native errors arrive as `bitnet.errors` exceptions: ModelFileError, ValidationError (a request that
cannot be computed as asked) and CancelledError. Everything here is internal: users hold
`bitnet.BitNet`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

class TensorInfo:
    @property
    def name(self) -> str: ...
    @property
    def type_name(self) -> str: ...
    @property
    def shape(self) -> list[int]:
        """GGUF order: the first dimension is the fastest (in features)."""
    @property
    def offset(self) -> int: ...
    @property
    def n_bytes(self) -> int: ...

class ModelFile:
    """A GGUF file, mapped and checked. Raises ModelFileError."""

    def __init__(self, path: str) -> None: ...
    @property
    def path(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def size(self) -> int:
        """Bytes of the file."""
    @property
    def metadata(self) -> dict[str, Any]:
        """Every key; strings (invalid UTF-8 as surrogate escapes), numbers, bools and lists. Built anew at
        each call."""
    @property
    def metadata_kinds(self) -> dict[str, str | tuple[str, str]]:
        """The type of each value, as GgufWriter.add_metadata has it: "u32", ("array", "string")."""
    @property
    def data_offset(self) -> int:
        """Where the data section begins, from the start of the file."""
    def activation(self, wanted: str = "") -> str:
        """What a Model of this file would compute. Raises ModelFileError for an unknown architecture."""
    @property
    def tensors(self) -> list[TensorInfo]: ...

class Model:
    """Weights, packed for the kernels. Raises ModelFileError if the file is not a model this engine
    computes."""

    def __init__(
        self,
        file: ModelFile,
        *,
        n_threads: int = 0,
        use_mmap: bool = True,
        use_mlock: bool = False,
        cache_path: str = "",
        embd_type: str = "",
        layout: str = "",
        tl_tiles: Sequence[tuple[int, int, int, int, int]] = (),
        activation: str = "",
        divide_by_scales: bool = False,
    ) -> None:
        """`cache_path`: where the packed weights are kept and mapped from (use_mmap); empty = private
        memory. `n_threads` only speeds up packing; 0 = physical cores. `embd_type`: the type that embedding
        and head are kept in (f32, f16, q8_0, q6_k, q4_0); empty = the file's. `layout`, `tl_tiles`: what the
        file does not say of its ternary tensors, see bitnet.models.tensor_codec. `activation`: of the
        feed-forward network (relu2 or silu), where the architecture's name leaves a choice; empty = by the
        file. `divide_by_scales`: the file holds inverse scales."""
    @property
    def architecture(self) -> str: ...
    @property
    def activation(self) -> str:
        """relu2, silu or gelu_tanh."""
    @property
    def n_layers(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def ffn_size(self) -> int: ...
    @property
    def n_heads(self) -> int: ...
    @property
    def n_kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def context_length(self) -> int: ...
    @property
    def tied_head(self) -> bool: ...
    @property
    def n_parameters(self) -> int: ...
    @property
    def ternary_bytes(self) -> int:
        """Bytes of the packed ternary matrices."""
    @property
    def embd_type(self) -> str:
        """The type embedding rows are kept in, such as "F16"."""
    @property
    def head_bytes(self) -> int:
        """Bytes of embedding and output head: their rows as they are kept, and the packed int8 rows."""
    @property
    def from_cache(self) -> bool:
        """Whether the packed weights came from an existing cache file."""
    @property
    def repairs(self) -> list[str]:
        """Human sentences: what was wrong in the file, and is handled."""
    @property
    def warnings(self) -> list[str]:
        """Human sentences: all-zero tensors, a cache that could not be written, memory that could not be
        locked."""
    @property
    def n_rot(self) -> int:
        """Rotated dimensions of each head."""
    @property
    def norm_eps(self) -> float: ...
    @property
    def rope_base(self) -> float: ...
    def ternary_rows(
        self, layer: int, name: str, words_multiple: int = 1
    ) -> tuple[NDArray[np.uint32], float]:
        """A ternary matrix, `q`, `k`, `v`, `o`, `gate`, `up` or `down`: [rows, words], and its scale. Element
        k of a row is code + 1 at bits 2 * (k % 16) of word k // 16; rows are filled up with zero weights to a
        multiple of `words_multiple` words."""
    def norm(self, layer: int, name: str) -> NDArray[np.float32] | None:
        """`attn_norm`, `ffn_norm`, `q_head_norm`, `k_head_norm`, `post_attn_norm`, `post_ffn_norm`; a ternary
        matrix, for the norm of its input that only it has; or, of any layer, `output_norm`: [width]; None =
        the model has none."""
    def embedding_rows(self, token_ids: NDArray[np.int32]) -> NDArray[np.float32]:
        """[n, hidden_size], as the first layer takes them in."""
    def head_rows(self) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """The output head in 8 bits: values [vocab, stride], stride being hidden_size rounded up to 64, and
        scales [vocab]. Views of the model's memory."""

class Head:
    """Logits of hidden states that were computed elsewhere, such as on a GPU. Not for concurrent use."""

    def __init__(self, model: Model, *, n_threads: int = 0) -> None: ...
    @property
    def n_threads(self) -> int: ...
    def take(self, hidden: NDArray[np.float32], scores: NDArray[np.float32], *, rounding: float) -> None:
        """hidden [n, hidden_size], after the final norm. scores [n, vocab]: computed from it in f32 with
        `head_rows`, as scale * sum((value + 128) * h) - 128 * scale * sum(h); `rounding`: the most that can
        be off, as a share of the sum of the terms' magnitudes. Both are copied."""
    def sample(self, row: int, sampler: Sampler, logprobs: int = -1) -> Sampled:
        """`Runner.sample` of what was taken last: whoever the scores do not rule out is computed exactly."""
    def logits(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        """[n, vocab], exact. hidden [n, hidden_size]."""

class Runner:
    """One compute context of one model: threads, scratch memory, and the paged KV store. Not for
    concurrent use, except `cancel`, which any thread may call at any time."""

    def __init__(
        self,
        model: Model,
        *,
        n_blocks: int,
        max_batch_tokens: int = 512,
        n_threads: int = 0,
        kernels: str = "",
        kv_type: str = "f16",
        table_min_tokens: int = 0,
        row_block: int = 2560,
        pieces_per_thread: int = 8,
        n_gpu_layers: int = 0,
        main_gpu: int = 0,
        low_vram: bool = False,
        gpu_library: str = "",
    ) -> None:
        """`n_blocks` KV blocks of `block_size` positions. `kv_type`: how keys and values are stored, f16 or
        q8_0 (8 bits, and an f16 scale for each 32 dimensions of a head). `kernels`: force an instruction set,
        one of `cpu_kernels()`.

        How ternary products are computed, without a change to any result: `table_min_tokens`: by table
        lookup from this many tokens on (1 = always, 0 = as is fastest with these kernels), `row_block`: the
        rows of one lookup (a multiple of 32), `pieces_per_thread`: how finely multiply-add is divided.

        `n_gpu_layers`: so many layers, from the first one on, are computed on the GPU `main_gpu` by the
        library at `gpu_library`; -1 = all, with embedding and head, which `low_vram` keeps here together with
        keys and values. Raises DeviceError."""
    @property
    def block_size(self) -> int:
        """Positions in one KV block (32)."""
    @property
    def n_blocks(self) -> int: ...
    @property
    def n_threads(self) -> int: ...
    @property
    def tiles(self) -> dict[str, int]:
        """table_min_tokens, row_block and pieces_per_thread, as they are used."""
    @property
    def n_products(self) -> tuple[int, int]:
        """Matrix products so far: by multiply-add, and by table lookup."""
    @property
    def kernels(self) -> str: ...
    @property
    def kv_type(self) -> str: ...
    @property
    def kv_bytes(self) -> int: ...
    @property
    def n_gpu_layers(self) -> int:
        """Layers that are computed on the GPU."""
    @property
    def gpu_bytes(self) -> int:
        """Bytes of the GPU's memory in use."""
    @property
    def max_batch_tokens(self) -> int: ...
    def forward(
        self,
        token_ids: NDArray[np.int32],
        block_tables: Sequence[Sequence[int]],
        starts: Sequence[int],
        lengths: Sequence[int],
        outputs: Sequence[int],
    ) -> None:
        """Compute one step for several sequences at once.

        token_ids [n]: the new tokens of all sequences, one after another; sequence s contributes
        lengths[s] of them, at positions starts[s].. of that sequence, whose KV blocks are
        block_tables[s] (block of position p: p // block_size). outputs: indices into token_ids
        (ascending) whose hidden state is kept for sampling and logits. n is at most max_batch_tokens.
        Releases the GIL. Raises CancelledError if `cancel` was called meanwhile.
        """
    def logits(self) -> NDArray[np.float32]:
        """[n_outputs, vocab] of the last forward, computed exactly with the file's own head."""
    def hidden(self) -> NDArray[np.float32]:
        """[n_outputs, hidden_size] of the last forward, after the final norm."""
    def logprobs(self, target_ids: NDArray[np.int32], first_output: int = 0) -> list[float]:
        """The log-probability of one token for each output of the last forward from first_output on, with the
        exact head (natural logarithm, temperature 1). target_ids: -1 = none wanted, which gives NaN. Memory:
        that of 64 rows of logits, however many targets there are."""
    def sample(self, output: int, sampler: Sampler, logprobs: int = -1) -> Sampled:
        """The next token for output row `output` (an index into `outputs` of the last forward). Does not
        call sampler.accept. logprobs: -1 none, else how many of the likeliest alternatives to report
        with the chosen one (0..20). The log-probabilities are those of the model's own distribution
        (temperature 1, before penalties and filters), computed with the exact head."""
    def copy_block(self, source: int, target: int) -> None:
        """Copy one KV block (all layers)."""
    def cancel(self) -> None:
        """Stop the forward pass under way, or the next one, between layers."""

class Sampled:
    @property
    def token_id(self) -> int: ...
    @property
    def logprob(self) -> float:
        """NaN when not asked for."""
    @property
    def top(self) -> list[tuple[int, float]]:
        """(token_id, logprob), likeliest first."""

class Sampler:
    """Sampling state of one sequence. Order: logit bias, penalties, temperature, top_k, top_p, min_p
    (temperature 0 = greedy: the arg max after bias and penalties). The same seed gives the same tokens."""

    def __init__(
        self,
        *,
        temperature: float = 0.7,
        top_k: int = 40,
        top_p: float = 0.9,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        seed: int = 0,
        logit_bias: Mapping[int, float] | None = None,
        prompt_ids: Sequence[int] = (),
    ) -> None:
        """repetition_penalty counts prompt_ids and accepted tokens; presence and frequency only accepted
        tokens. top_k 0 = all; top_p 1 = all; min_p 0 = off. seed: u64."""
    def accept(self, token_id: int) -> None:
        """Record a generated token (penalties)."""
    def sample(self, logits: NDArray[np.float32], logprobs: int = -1) -> Sampled:
        """The next token, given exact logits [vocab] that were computed elsewhere; see Runner.sample."""
    def set_mask(self, mask: NDArray[np.int32] | None) -> None:
        """Allowed tokens of the next sample: bit t % 32 of word t // 32 (llguidance's bitmask); None =
        all."""

class Flag:
    """What another library's native code asks whether to stop: call `reader` with `address`, as C's
    bool (*)(void *). It needs no interpreter lock. Any thread may set and take it."""

    @property
    def reader(self) -> int: ...
    @property
    def address(self) -> int: ...
    def set(self) -> None: ...
    def take(self) -> bool:
        """Whether it was set; it no longer is."""

class GpuDevice:
    @property
    def name(self) -> str: ...
    @property
    def capability(self) -> str:
        """Compute capability, such as "9.0"."""
    @property
    def n_processors(self) -> int: ...
    @property
    def total_bytes(self) -> int: ...
    @property
    def free_bytes(self) -> int: ...
    @property
    def emulated(self) -> bool:
        """It is no device, but this machine's processor: for tests."""
    @property
    def problem(self) -> str:
        """Why it cannot be used; empty = it can."""

def gpu_devices(library: str) -> tuple[list[GpuDevice], str]:
    """What a CUDA library finds, and why it finds nothing. Raises DeviceError if it cannot be loaded."""

def gpu_product(
    library: str, device: int, codes: NDArray[np.int8], x: NDArray[np.int8], timed: bool = False
) -> tuple[NDArray[np.float32], float, int, float]:
    """codes [rows, cols] (-1, 0, 1) times x [n, cols] on a GPU: the exact sums [n, rows]. If timed: seconds
    of one product with weights that come from memory, the bytes of those, and the bytes a second (read and
    written) of a copy within the device's memory. Raises DeviceError."""

def cpu_kernels() -> list[str]:
    """Kernel sets this processor can run, best first."""

def decode_ternary(
    data: NDArray[np.uint8],
    type_name: str,
    rows: int,
    cols: int,
    layout: str = "",
    tl_tiles: Sequence[tuple[int, int, int, int, int]] = (),
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes [rows, cols] and scales [1 or number of blocks], see bitnet.models.tensor_codec."""

def encode_ternary(
    codes: NDArray[np.int8],
    scale: float,
    type_name: str,
    layout: str = "",
    tl_tiles: Sequence[tuple[int, int, int, int, int]] = (),
) -> bytes: ...
def decode_rows(data: NDArray[np.uint8], type_name: str, rows: int, cols: int) -> NDArray[np.float32]: ...
def encode_rows(values: NDArray[np.float32], type_name: str) -> NDArray[np.uint8]:
    """Rows [n, cols] of finite numbers as f32, f16, bf16, q8_0, q6_k or q4_0: bytes [n, bytes of a row]."""

def compare_logits(
    a: NDArray[np.float32], b: NDArray[np.float32], target_ids: NDArray[np.int32], n_threads: int = 0
) -> NDArray[np.float64]:
    """How the logits [n, vocab] of two models differ at n positions: [n, 6], of each position the
    Kullback-Leibler divergence of b's distribution from a's in nats, the largest difference of two logits,
    the likeliest token of a and of b (of equals the first), and the log-probability that a and b give to the
    target (NaN for -1). n_threads: 0 = physical cores."""

def physical_cores() -> int: ...
def build_info() -> dict[str, str]:
    """Compiler, version, supported kernel sets."""
