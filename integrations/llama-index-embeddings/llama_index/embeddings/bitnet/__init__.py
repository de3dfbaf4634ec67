"""Embeddings of BitNet models for LlamaIndex, computed in this process or by an OpenAI-compatible server."""

from llama_index.embeddings.bitnet.base import BitNetEmbedding

__all__ = ["BitNetEmbedding"]
