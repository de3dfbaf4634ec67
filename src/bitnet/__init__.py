"""BitNet b1.58 models in Python: load a file, ask it something. The names in __all__ are the public surface.

Each name is imported when it is first used, so that `import bitnet` costs nothing.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitnet.config import BitNetConfig
    from bitnet.engines.generation import Generation
    from bitnet.engines.registry import unload_all
    from bitnet.errors import (
        AuthenticationError,
        BitNetError,
        CancelledError,
        CapabilityError,
        ChatTemplateError,
        ConfigError,
        ConstraintError,
        ContextOverflowError,
        ConversionError,
        DeadlineError,
        DeviceError,
        DownloadError,
        EngineClosedError,
        ModelFileError,
        ModelNotFoundError,
        OverloadedError,
        ServerError,
        ServerUnreachableError,
        StreamInterruptedError,
        ValidationError,
    )
    from bitnet.inference import BitNetInference, BitNetService
    from bitnet.model import BitNet
    from bitnet.values import (
        Delta,
        EmbeddingRequest,
        GenerateOptions,
        Message,
        ModelInfo,
        NamedTool,
        Reply,
        Request,
        Sampling,
        Timings,
        TokenLogprob,
        Tool,
        ToolCall,
        ToolCallDelta,
        Usage,
    )

    __version__: str

__all__ = [
    "AuthenticationError",
    "BitNet",
    "BitNetConfig",
    "BitNetError",
    "BitNetInference",
    "BitNetService",
    "CancelledError",
    "CapabilityError",
    "ChatTemplateError",
    "ConfigError",
    "ConstraintError",
    "ContextOverflowError",
    "ConversionError",
    "DeadlineError",
    "Delta",
    "DeviceError",
    "DownloadError",
    "EmbeddingRequest",
    "EngineClosedError",
    "GenerateOptions",
    "Generation",
    "Message",
    "ModelFileError",
    "ModelInfo",
    "ModelNotFoundError",
    "NamedTool",
    "OverloadedError",
    "Reply",
    "Request",
    "Sampling",
    "ServerError",
    "ServerUnreachableError",
    "StreamInterruptedError",
    "Timings",
    "TokenLogprob",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "Usage",
    "ValidationError",
    "__version__",
    "unload_all",
]

logging.getLogger("bitnet").addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'bitnet' has no attribute {name!r}")
    if name == "__version__":
        value: Any = _version()
    elif name == "BitNet":
        from bitnet.model import BitNet as value
    elif name == "BitNetConfig":
        from bitnet.config import BitNetConfig as value
    elif name in ("BitNetInference", "BitNetService"):
        from bitnet import inference

        value = getattr(inference, name)
    elif name == "Generation":
        from bitnet.engines.generation import Generation as value
    elif name == "unload_all":
        from bitnet.engines.registry import unload_all as value
    else:
        from bitnet import errors, values

        value = getattr(errors if hasattr(errors, name) else values, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("bitnet-cpp")
    except metadata.PackageNotFoundError:
        return "0+unknown"  # run from a source tree that was never installed
