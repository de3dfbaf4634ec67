"""Errors of bitnet as LangChain knows them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import bitnet
from langchain_core import exceptions


class ContextOverflowError(bitnet.ContextOverflowError, exceptions.ContextOverflowError):
    """The prompt does not fit into the context. Both bitnet's error and LangChain's."""


class TruncatedOutputError(exceptions.OutputParserException):
    """A tool call or JSON was cut off, by the token limit or a stop string.

    LangChain's parsers would complete the text to valid JSON and pass on values that the model never gave;
    `llm_output` is the text as far as it came.
    """

    def __init__(self, what: str, text: str = "") -> None:
        super().__init__(
            f"{what} was cut off, by max_tokens, the end of the context or a stop string; allow more "
            "max_tokens, shorten the prompt, or leave out the stop strings",
            llm_output=text,
        )


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Raises LangChain's error where it has one of its own."""
    try:
        yield
    except bitnet.ContextOverflowError as error:
        overflow = ContextOverflowError(error.n_prompt_tokens, error.n_ctx)
        overflow.args = error.args
        overflow.field = error.field
        raise overflow from error
