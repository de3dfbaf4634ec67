"""The events of a streamed /responses: each item of the output is added, grows, and is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bitnet.server import generate, strict_json
from bitnet.server.errors import ApiError
from bitnet.server.response_items import function_call, message, output_text
from bitnet.values import Delta, Reply, TokenLogprob, ToolCallDelta

Completed = Callable[[Mapping[str, Any], Reply, Sequence[Mapping[str, Any]]], dict[str, Any]]


class ResponseWriter:
    """Implements generate.Writer."""

    def __init__(self, response: dict[str, Any], completed: Completed) -> None:
        """response: as it is before the answer. completed: makes the one with reply and output of it."""
        self._response = response
        self._completed = completed
        self._output: list[dict[str, Any]] = []  # the items that are done
        self._open: _Text | _Call | None = None
        self._n_events = 0
        self._events: list[bytes] = []

    def deltas(self, deltas: list[Delta]) -> bytes:
        text = "".join([delta.text for delta in deltas])
        logprobs = [entry for delta in deltas for entry in delta.logprobs]
        calls = generate.joined_calls(deltas)
        if not (text or logprobs or calls):
            return b""
        self._begin()
        # In one step, text comes before the call that ends it.
        if text or logprobs:
            self._add_text(text, logprobs)
        for piece in calls:
            self._add_call(piece)
        return self._taken()

    def end(self, reply: Reply) -> bytes:
        self._begin()
        status = "incomplete" if reply.finish_reason == "length" else "completed"
        if not self._output and self._open is None:
            self._open_text()
        self._close(status)
        response = self._completed(self._response, reply, self._output)
        self._event(f"response.{status}", response=response)
        return self._taken()

    def error(self, error: ApiError) -> bytes:
        self._begin()
        code = error.code or error.kind
        self._event("error", code=code, message=str(error), param=error.param)
        failure = {"code": "server_error", "message": str(error)}
        failed = {**self._response, "status": "failed", "error": failure, "output": self._output}
        self._event("response.failed", response=failed)
        return self._taken()

    def _begin(self) -> None:
        if self._n_events == 0:
            self._event("response.created", response=self._response)
            self._event("response.in_progress", response=self._response)

    def _add_text(self, text: str, logprobs: list[TokenLogprob]) -> None:
        item = self._open
        if not isinstance(item, _Text):
            # Tokens of calls have log-probabilities too, but this API has no place for them.
            if not text:
                return
            self._close("completed")
            item = self._open_text()
        item.texts.append(text)
        item.logprobs += logprobs
        self._event(
            "response.output_text.delta",
            item_id=item.id,
            output_index=len(self._output),
            content_index=0,
            delta=text,
            logprobs=[generate.chat_logprob(entry) for entry in logprobs],
        )

    def _open_text(self) -> _Text:
        item = self._open = _Text()
        index = len(self._output)
        added = message(item.id, None, (), "in_progress")
        self._event("response.output_item.added", output_index=index, item=added)
        part = output_text("", ())
        self._event(
            "response.content_part.added", item_id=item.id, output_index=index, content_index=0, part=part
        )
        return item

    def _add_call(self, piece: ToolCallDelta) -> None:
        if piece.id is not None:
            self._close("completed")
            self._open = _Call(piece.id, piece.name or "")
            added = self._open.item("in_progress")
            self._event("response.output_item.added", output_index=len(self._output), item=added)
        call = self._open
        assert isinstance(call, _Call)
        if piece.arguments:
            call.arguments.append(piece.arguments)
            self._event(
                "response.function_call_arguments.delta",
                item_id=call.id,
                output_index=len(self._output),
                delta=piece.arguments,
            )

    def _close(self, status: str) -> None:
        """The item that grew is done."""
        item, index = self._open, len(self._output)
        if item is None:
            return
        if isinstance(item, _Text):
            text = "".join(item.texts)
            part = output_text(text, item.logprobs)
            place = {"item_id": item.id, "output_index": index, "content_index": 0}
            self._event("response.output_text.done", **place, text=text, logprobs=part["logprobs"])
            self._event("response.content_part.done", **place, part=part)
        else:
            done = {"item_id": item.id, "output_index": index, "name": item.name}
            self._event("response.function_call_arguments.done", **done, arguments="".join(item.arguments))
        whole = item.item(status)
        self._event("response.output_item.done", output_index=index, item=whole)
        self._output.append(whole)
        self._open = None

    def _event(self, kind: str, **data: Any) -> None:
        body = strict_json.dump({"type": kind, "sequence_number": self._n_events, **data})
        self._events.append(b"event: %b\ndata: %b\n\n" % (kind.encode(), body))
        self._n_events += 1

    def _taken(self) -> bytes:
        events, self._events = b"".join(self._events), []
        return events


class _Text:
    """A message that is growing."""

    def __init__(self) -> None:
        self.id = generate.new_id("msg")
        self.texts: list[str] = []
        self.logprobs: list[TokenLogprob] = []

    def item(self, status: str) -> dict[str, Any]:
        return message(self.id, "".join(self.texts), self.logprobs, status)


class _Call:
    """A call whose arguments are growing."""

    def __init__(self, call_id: str, name: str) -> None:
        self.id = generate.new_id("fc")
        self.call_id = call_id
        self.name = name
        self.arguments: list[str] = []

    def item(self, status: str) -> dict[str, Any]:
        return function_call(self.id, self.call_id, self.name, "".join(self.arguments), status)
