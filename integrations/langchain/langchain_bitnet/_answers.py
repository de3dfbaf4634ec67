"""A bitnet answer as LangChain's messages: whole, or chunk by chunk."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bitnet import Delta, Reply
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.tool import ToolCall, ToolCallChunk, tool_call, tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from ._errors import TruncatedOutputError
from ._options import logprobs_of, usage_metadata
from ._reasoning import ReasoningSplitter, split
from ._tools import is_forced

PROVIDER = "bitnet"


@dataclass(frozen=True)
class Call:
    """One call of a chat model. options: the keyword arguments of BitNet.chat.

    model: another one than the chat model's own. label: what the model is called in metadata.
    reasoning: whether to tell apart what stands between <think> and </think>. usage: whether to report it.
    """

    options: Mapping[str, Any]
    model: str | None
    label: str
    reasoning: bool = False
    usage: bool = True

    @property
    def has_tools(self) -> bool:
        return "tools" in self.options

    @property
    def wants_json(self) -> bool:
        return self.options.get("response_format", {}).get("type") in ("json_object", "json_schema")

    def check_whole(self, reply: Reply, n_begun: int) -> None:
        """Raises TruncatedOutputError for an answer that LangChain would complete to valid JSON.

        n_begun: calls of tools that were begun.
        """
        cut = reply.finish_reason == "length"
        forced = not reply.tool_calls and is_forced(self.options.get("tool_choice"))
        if n_begun > len(reply.tool_calls) or (forced and (cut or reply.stop_string is not None)):
            raise TruncatedOutputError("a tool call", reply.text)
        if self.wants_json and not reply.tool_calls:
            # A stop string may have come within a value. Servers do not say which one it was, if any.
            stopped = reply.stop_string is not None or bool(self.options.get("stop"))
            if cut or (stopped and not _is_json(split(reply.text).text if self.reasoning else reply.text)):
                raise TruncatedOutputError("the JSON of the answer", reply.text)

    def metadata(self, reply: Reply) -> dict[str, Any]:
        return {
            "model_name": self.label,
            "model_provider": PROVIDER,
            "finish_reason": reply.finish_reason,
            "timings": reply.timings.to_dict(),
        }

    def result(self, reply: Reply, begun: Mapping[int, int]) -> ChatResult:
        """All answers of one request. begun: tool calls begun in each. Raises TruncatedOutputError."""
        generations = []
        for index, sample in enumerate(reply.samples or (reply,)):
            self.check_whole(sample, begun[index])
            generations.append(self._generation(sample))
        # With the first, because whoever adds up usage must not count the prompt once for each of them. It is
        # an AIMessage, which ChatGeneration does not say.
        generations[0].message.usage_metadata = usage_metadata(reply)  # type: ignore[attr-defined]  # of a chat
        return ChatResult(generations=generations)

    def _generation(self, reply: Reply) -> ChatGeneration:
        text, more = reply.text, {}
        if self.reasoning:
            reasoning, text = split(text)
            more = {"reasoning_content": reasoning} if reasoning else {}
        metadata = self.metadata(reply)
        if reply.logprobs is not None:
            metadata["logprobs"] = logprobs_of(reply.logprobs)
        calls: list[ToolCall] = [
            tool_call(name=call.name, args=call.parsed, id=call.id) for call in reply.tool_calls
        ]
        message = AIMessage(text, tool_calls=calls, additional_kwargs=more, response_metadata=metadata)
        return ChatGeneration(message=message, generation_info={"finish_reason": reply.finish_reason})


class BegunCalls(Counter[int]):
    """How many tool calls were begun in each answer of a request, the one that was cut included.

    Of that one a Reply tells nothing, and without it a cut answer looks like a whole one without calls.
    """

    def count(self, delta: Delta) -> None:
        self[delta.index] += sum(piece.id is not None for piece in delta.tool_calls)


class Chunks:
    """Makes chunks of deltas. Names and numbers come with one chunk only, because LangChain adds them up."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._splitter = ReasoningSplitter() if call.reasoning else None
        self._begun = BegunCalls()

    def of(self, delta: Delta) -> Iterator[ChatGenerationChunk]:
        """None for a delta that says nothing yet."""
        self._begun.count(delta)
        calls: list[ToolCallChunk] = []
        for piece in delta.tool_calls:
            if calls and calls[-1]["index"] == piece.index and piece.id is None:
                # Within a chunk LangChain takes each entry for a call of its own.
                calls[-1]["args"] = (calls[-1]["args"] or "") + piece.arguments
            else:
                calls.append(
                    tool_call_chunk(name=piece.name, args=piece.arguments, id=piece.id, index=piece.index)
                )
        text, more = delta.text, {}
        if self._splitter is not None:
            reasoning, text = self._splitter.feed(text)
            more = {"reasoning_content": reasoning} if reasoning else {}
        if text or calls or more or delta.logprobs:
            message = AIMessageChunk(content=text, tool_call_chunks=calls, additional_kwargs=more)
            info = {"logprobs": logprobs_of(delta.logprobs)} if delta.logprobs else None
            yield ChatGenerationChunk(message=message, generation_info=info)

    def last(self, reply: Reply) -> ChatGenerationChunk:
        """What ends a stream. Raises TruncatedOutputError."""
        self._call.check_whole(reply, self._begun[0])
        text, more = "", {}
        if self._splitter is not None:
            reasoning, text = self._splitter.flush()
            more = {"reasoning_content": reasoning} if reasoning else {}
        message = AIMessageChunk(
            content=text,
            additional_kwargs=more,
            response_metadata=self._call.metadata(reply),
            usage_metadata=usage_metadata(reply) if self._call.usage else None,
            chunk_position="last",
        )
        return ChatGenerationChunk(message=message)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
