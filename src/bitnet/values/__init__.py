"""The values that flow: what is asked (Message, Tool, Sampling, Request) and answered (Delta, Reply).

Immutable, and checked when they are built: whoever holds a Request may trust it. Nothing here knows a model.
"""

from .checks import as_choice, as_flag, as_integer, as_number, as_text, as_token_ids, nearest
from .embedding import EmbeddingKind, EmbeddingRequest, Pooling
from .info import (
    Activation,
    EmbdType,
    EngineChoice,
    EngineName,
    Health,
    KvType,
    Layout,
    ModelInfo,
    QuantType,
    Scales,
    TernaryLayout,
)
from .messages import ROLES, Message, MessageLike, as_messages
from .reply import Delta, FinishReason, Reply, Timings, TokenLogprob, ToolCallDelta, Usage
from .request import MAX_SAMPLES, MAX_STOP_STRINGS, MAX_TOP_LOGPROBS, GenerateOptions, Request
from .sampling import Sampling
from .tools import MAX_TOOLS, NamedTool, Tool, ToolCall, ToolChoice, ToolLike, as_tool_choice, as_tools

__all__ = [
    "MAX_SAMPLES",
    "MAX_STOP_STRINGS",
    "MAX_TOOLS",
    "MAX_TOP_LOGPROBS",
    "ROLES",
    "Activation",
    "Delta",
    "EmbdType",
    "EmbeddingKind",
    "EmbeddingRequest",
    "EngineChoice",
    "EngineName",
    "FinishReason",
    "GenerateOptions",
    "Health",
    "KvType",
    "Layout",
    "Message",
    "MessageLike",
    "ModelInfo",
    "NamedTool",
    "Pooling",
    "QuantType",
    "Reply",
    "Request",
    "Sampling",
    "Scales",
    "TernaryLayout",
    "Timings",
    "TokenLogprob",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "ToolChoice",
    "ToolLike",
    "Usage",
    "as_choice",
    "as_flag",
    "as_integer",
    "as_messages",
    "as_number",
    "as_text",
    "as_token_ids",
    "as_tool_choice",
    "as_tools",
    "nearest",
]
