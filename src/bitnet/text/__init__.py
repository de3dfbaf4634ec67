"""Text in and out: tokenizers, chat templates and incremental decoding, made from a model file's metadata.

Knows nothing of threads, HTTP or the native engine.
"""
