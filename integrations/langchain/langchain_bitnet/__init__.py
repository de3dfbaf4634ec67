"""BitNet models for LangChain: chat model, text model and embeddings, in this process or on a server."""

from ._errors import ContextOverflowError, TruncatedOutputError
from ._version import __version__
from .chat_models import ChatBitNet
from .embeddings import BitNetEmbeddings
from .llms import BitNetLLM

__all__ = [
    "BitNetEmbeddings",
    "BitNetLLM",
    "ChatBitNet",
    "ContextOverflowError",
    "TruncatedOutputError",
    "__version__",
]
