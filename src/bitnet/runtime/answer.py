"""What an answer says: text and tool calls, told apart while they come; and several answers as one reply.

Nothing here knows a model or a scheduler.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from bitnet.engines.generation import Outlet
from bitnet.text.incremental import StopMatcher
from bitnet.values import Reply, ToolCall, ToolCallDelta, Usage

if TYPE_CHECKING:
    from bitnet.text.tool_call_parser import ToolCallEvent


class Piece(NamedTuple):
    """More text, and then more of tool calls."""

    text: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()


class AnswerText:
    """Takes the pieces of an answer's text as they come, and holds back what may be part of something.

    That is the beginning of a stop string or of a tool call. Stop strings are looked for in the text only,
    not in calls: an argument that contains one must not be cut.
    """

    def __init__(self, stop: Iterable[str] = (), *, with_tools: bool = False) -> None:
        self._matcher = StopMatcher(stop)
        self._parser = None
        if with_tools:
            from bitnet.text.tool_call_parser import ToolCallParser  # late: most requests have no tools

            self._parser = ToolCallParser()
        self._text: list[str] = []
        self._calls: list[ToolCall] = []
        self._id = self._name = ""  # of the call that has begun
        self._arguments: list[str] = []

    @property
    def stop_string(self) -> str | None:
        """The stop string that came; nothing after it counts."""
        return self._matcher.matched

    @property
    def text(self) -> str:
        """All that was handed out."""
        return "".join(self._text)

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The calls that are complete."""
        return tuple(self._calls)

    def feed(self, text: str) -> Piece:
        """What is known now that this text has come."""
        if self._parser is not None:
            return self._follow(self._parser.feed(text))
        released = self._matcher.feed(text)
        self._text.append(released)
        return Piece(released)

    def flush(self, last: str) -> Piece:
        """Ends the answer with its last text: what was held back and did not become anything else."""
        pieces = [self.feed(last)]
        if self._parser is not None:
            pieces.append(self._follow(self._parser.flush()))
        if self.stop_string is None:
            rest = self._matcher.flush()
            self._text.append(rest)
            pieces.append(Piece(rest))
        return Piece("".join(piece.text for piece in pieces), sum((p.tool_calls for p in pieces), ()))

    def _follow(self, events: Iterable[ToolCallEvent]) -> Piece:
        from bitnet.text.tool_call_parser import TextDelta, ToolCallArgumentsDelta, ToolCallStart

        text = ""
        deltas: list[ToolCallDelta] = []
        for event in events:
            if self.stop_string is not None:
                break
            if isinstance(event, TextDelta):
                text += self._matcher.feed(event.text)
            elif isinstance(event, ToolCallStart):
                text += self._matcher.flush()
                self._id, self._name, self._arguments = event.id, event.name, []
                deltas.append(ToolCallDelta(event.index, event.id, event.name))
            elif isinstance(event, ToolCallArgumentsDelta):
                self._arguments.append(event.text)
                deltas.append(ToolCallDelta(event.index, arguments=event.text))
            else:
                self._calls.append(ToolCall(self._id, self._name, "".join(self._arguments)))
        self._text.append(text)
        return Piece(text, tuple(deltas))


class Gathering:
    """The `n` answers of one request, on their way through one outlet."""

    def __init__(self, n: int) -> None:
        self.outlet: Outlet[Reply] = Outlet()
        self._replies: list[Reply | None] = [None] * n

    def finish(self, index: int, reply: Reply) -> None:
        """The answer `index` is complete; the last one completes the whole."""
        self._replies[index] = reply
        replies = [reply for reply in self._replies if reply is not None]
        if len(replies) == len(self._replies):
            self.outlet.finish(_together(replies))


def _together(replies: list[Reply]) -> Reply:
    first = replies[0]
    if len(replies) == 1:
        return first
    n_tokens = sum(reply.usage.completion_tokens for reply in replies)
    usage = Usage(first.usage.prompt_tokens, n_tokens, first.usage.cached_tokens)
    return replace(first, usage=usage, samples=tuple(replies))
