"""LlamaIndex on BitNet models: in this process with `bitnet`, or from an OpenAI-compatible server."""

from llama_index.llms.bitnet import formats
from llama_index.llms.bitnet.base import BitNet
from llama_index.llms.bitnet.react import CompactReActFormatter
from llama_index.llms.bitnet.selector import BitNetSelector
from llama_index.llms.bitnet.structured import TruncatedOutputError

__all__ = ["BitNet", "BitNetSelector", "CompactReActFormatter", "TruncatedOutputError", "formats"]
