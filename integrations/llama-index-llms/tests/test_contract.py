"""The contract of LLM, on a scripted engine: the eight ways to ask, events, options, copies."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
import time
from typing import Any

import pytest
from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.base.llms.types import (
    ChatMessage,
    ImageBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.base import BaseEvent
from llama_index.core.instrumentation.events.llm import (
    LLMChatEndEvent,
    LLMChatStartEvent,
    LLMCompletionEndEvent,
    LLMCompletionStartEvent,
)
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.llms.bitnet import BitNet
from scripted import MakeLLM, prompts_of, requests_of

import bitnet
from bitnet.testing import FakeReply

PIECES = ["Hel", "lo, ", "wörld", "!"]
WHOLE = "Hello, wörld!"
HI = [ChatMessage(role=MessageRole.USER, content="Hi")]
WAYS = ("chat", "complete", "stream_chat", "stream_complete")


def ask(llm: BitNet, way: str, **kwargs: Any) -> list[Any]:
    """All responses of one of the four ways for threads."""
    response = getattr(llm, way)(HI if "chat" in way else "Hi", **kwargs)
    return list(response) if "stream" in way else [response]


async def aask(llm: BitNet, way: str, **kwargs: Any) -> list[Any]:
    """All responses of one of the four ways for event loops."""
    response = await getattr(llm, f"a{way}")(HI if "chat" in way else "Hi", **kwargs)
    return [piece async for piece in response] if "stream" in way else [response]


def ask_either(llm: BitNet, way: str, is_async: bool, **kwargs: Any) -> list[Any]:
    return asyncio.run(aask(llm, way, **kwargs)) if is_async else ask(llm, way, **kwargs)


def text_of(response: Any) -> str:
    return str(response.message.content if hasattr(response, "message") else response.text)


EIGHT = pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
WAY = pytest.mark.parametrize("way", WAYS)


def test_class() -> None:
    names = [base.__name__ for base in BitNet.__mro__]
    assert BaseLLM.__name__ in names
    assert issubclass(BitNet, CustomLLM)
    assert issubclass(BitNet, FunctionCallingLLM)
    assert not BitNet.__abstractmethods__
    assert BitNet.class_name() == "bitnet_llm"


@EIGHT
@WAY
def test_the_eight_ways_to_ask(make_llm: MakeLLM, way: str, is_async: bool) -> None:
    llm = make_llm(FakeReply(PIECES))
    responses = ask_either(llm, way, is_async)
    assert text_of(responses[-1]) == WHOLE
    if "stream" in way:
        assert [response.delta for response in responses] == [*PIECES, ""]
        texts = [text_of(response) for response in responses]
        assert texts == ["Hel", "Hello, ", "Hello, wörld", WHOLE, WHOLE]
    assert prompts_of(llm) == ["user: Hi"]


@EIGHT
@WAY
def test_usage_is_in_the_last_response(make_llm: MakeLLM, way: str, is_async: bool) -> None:
    llm = make_llm(FakeReply(PIECES))
    last = ask_either(llm, way, is_async)[-1]
    assert last.raw["usage"] == {
        "prompt_tokens": len("user: Hi\nassistant: ") + 1,
        "completion_tokens": len(WHOLE.encode()),
        "total_tokens": len("user: Hi\nassistant: ") + 1 + len(WHOLE.encode()),
        "cached_tokens": 0,
    }
    assert (last.raw["finish_reason"], last.raw["model"]) == ("stop", "fake")


class _Recorder(BaseEventHandler):
    events: list[BaseEvent]

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        self.events.append(event)


@EIGHT
@WAY
def test_a_call_is_one_event(make_llm: MakeLLM, way: str, is_async: bool) -> None:
    recorder = _Recorder(events=[])
    handlers = get_dispatcher().event_handlers
    handlers.append(recorder)
    counter = TokenCountingHandler(tokenizer=lambda text: list(text))
    try:
        ask_either(make_llm(FakeReply(PIECES), callback_manager=CallbackManager([counter])), way, is_async)
    finally:
        handlers.remove(recorder)
    starts = [e for e in recorder.events if isinstance(e, (LLMChatStartEvent, LLMCompletionStartEvent))]
    ends = [e for e in recorder.events if isinstance(e, (LLMChatEndEvent, LLMCompletionEndEvent))]
    assert (len(starts), len(ends)) == (1, 1)
    assert len(counter.llm_token_counts) == 1
    assert counter.completion_llm_token_count == len(WHOLE.encode())


@EIGHT
@pytest.mark.parametrize("way", ["complete", "stream_complete"])
def test_a_formatted_prompt_is_continued_as_it_is(make_llm: MakeLLM, way: str, is_async: bool) -> None:
    llm = make_llm()
    ask_either(llm, way, is_async, formatted=True)
    (request,) = requests_of(llm)
    assert (request.prompt, request.messages) == ("Hi", None)


@EIGHT
@WAY
def test_templates_of_the_user(make_llm: MakeLLM, way: str, is_async: bool) -> None:
    llm = make_llm(
        messages_to_prompt=lambda messages: f"<{messages[0].content}>",
        completion_to_prompt=lambda prompt: f"[{prompt}]",
    )
    ask_either(llm, way, is_async)
    (request,) = requests_of(llm)
    assert request.token_ids is not None  # its special tokens count as such
    assert llm.client.detokenize(request.token_ids) == ("<Hi>" if "chat" in way else "[Hi]")


def test_options_of_object_and_call(make_llm: MakeLLM) -> None:
    llm = make_llm(temperature=0.5, top_k=3, seed=1, stop=["X"], max_tokens=9)
    llm.chat(HI, temperature=0.25, stop=["Y", "Z"], top_p=None, logprobs=True)
    (request,) = requests_of(llm)
    assert (request.sampling.temperature, request.sampling.top_k, request.sampling.seed) == (0.25, 3, 1)
    assert (request.stop, request.max_tokens, request.logprobs) == (("Y", "Z"), 9, True)
    make_llm().chat(HI)
    defaults = make_llm()
    defaults.complete("Hi")
    assert (requests_of(defaults)[0].sampling.temperature, requests_of(defaults)[0].max_tokens) == (0.0, 256)


@EIGHT
@WAY
def test_unknown_options_are_refused(make_llm: MakeLLM, way: str, is_async: bool) -> None:
    llm = make_llm()
    with pytest.raises(TypeError, match=r"'temprature'; known: .*temperature"):
        ask_either(llm, way, is_async, temprature=0.1)
    assert requests_of(llm) == []
    with pytest.raises(ValueError, match="temprature"):
        BitNet(temprature=0.1)


def test_stop_strings_end_an_answer(make_llm: MakeLLM) -> None:
    response = make_llm("one two three", stop=[" three"]).complete("Count")
    assert (response.text, response.raw["stop_string"]) == ("one two", " three")


def test_logprobs(make_llm: MakeLLM) -> None:
    llm = make_llm(FakeReply(["a", "b"]), top_logprobs=2)
    response = llm.chat(HI)
    assert response.logprobs is not None
    assert [[entry.token for entry in token] for token in response.logprobs] == [
        ["a", "a", "b"],
        ["b", "b", "c"],
    ]
    streamed = list(llm.stream_chat(HI))
    assert [piece.logprobs and piece.logprobs[0][0].token for piece in streamed] == ["a", "b", None]


def test_roles_and_blocks(make_llm: MakeLLM) -> None:
    llm = make_llm()
    llm.chat(
        [
            ChatMessage(role=MessageRole.DEVELOPER, content="Be brief."),
            ChatMessage(role=MessageRole.USER, blocks=[TextBlock(text="one"), TextBlock(text="two")]),
            ChatMessage(
                role=MessageRole.MODEL, blocks=[ThinkingBlock(content="hm"), TextBlock(text="three")]
            ),
            ChatMessage(role=MessageRole.FUNCTION, content="four", additional_kwargs={"name": "f"}),
        ]
    )
    (request,) = requests_of(llm)
    assert request.messages is not None
    assert [(message.role, message.content) for message in request.messages] == [
        ("system", "Be brief."),
        ("user", "one\ntwo"),
        ("assistant", "three"),
        ("tool", "four"),
    ]
    assert request.messages[3].name == "f"
    picture = ChatMessage(role=MessageRole.USER, blocks=[ImageBlock(image=b"abc")])
    with pytest.raises(bitnet.ValidationError, match="holds a ImageBlock"):
        llm.chat([picture])


def test_calls_and_results_are_told_back(make_llm: MakeLLM) -> None:
    llm = make_llm()
    block = ToolCallBlock(tool_call_id="c1", tool_name="add", tool_kwargs={"a": 1})
    older = {"id": "c2", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
    llm.chat(
        [
            *HI,
            ChatMessage(role=MessageRole.ASSISTANT, blocks=[block]),
            ChatMessage(role=MessageRole.TOOL, content="2", additional_kwargs={"tool_call_id": "c1"}),
            ChatMessage(role=MessageRole.ASSISTANT, additional_kwargs={"tool_calls": [older]}),
            ChatMessage(role=MessageRole.TOOL, content="3", additional_kwargs={"tool_call_id": "c2"}),
        ]
    )
    (request,) = requests_of(llm)
    assert request.messages is not None
    calls = [(call.id, call.name, call.parsed) for message in request.messages for call in message.tool_calls]
    assert calls == [("c1", "add", {"a": 1}), ("c2", "add", {"a": 2})]
    assert [message.tool_call_id for message in request.messages] == [None, None, "c1", None, "c2"]


def test_messages_and_options_stay_as_they_were(make_llm: MakeLLM) -> None:
    llm = make_llm()
    messages = [ChatMessage(role=MessageRole.USER, content="Hi")]
    options = {"stop": ["x"], "response_format": {"type": "choice", "choices": ["a"]}}
    before = copy.deepcopy((messages, options))
    llm.chat(messages, **options)
    assert (messages, options) == before


def test_metadata(make_llm: MakeLLM) -> None:
    metadata = make_llm(engine={"n_ctx": 1000}).metadata
    assert (metadata.context_window, metadata.num_output, metadata.model_name) == (936, 256, "fake")
    assert metadata.is_chat_model
    assert metadata.is_function_calling_model
    assert not make_llm(tool_calling=False).metadata.is_function_calling_model
    with pytest.raises(bitnet.ValidationError, match=r"max_tokens=256 leaves no room .* 236 tokens"):
        _ = make_llm(engine={"n_ctx": 300}).metadata


def test_the_bundled_model_is_not_loaded_for_its_metadata() -> None:
    llm = BitNet(n_batch=3)  # which no other test has loaded
    metadata = llm.metadata
    assert (metadata.context_window, metadata.model_name) == (bitnet.BitNet().n_ctx - 64, "bitnet-tiny")
    assert "not loaded" in repr(llm.connect())


def test_a_configuration_says_the_rest() -> None:
    config = {"bitnet": {"n_ctx": 512, "max_tokens": 33, "temperature": 0.25, "stop": "."}}
    llm = BitNet.from_config(config)
    assert (llm.metadata.context_window, llm.metadata.num_output) == (448, 33)
    assert llm.complete("What is the capital of France?").text == "The capital of France is Paris"
    other = llm.with_options(max_tokens=5, n_ctx=256)
    assert (other.metadata.context_window, other.metadata.num_output) == (192, 5)
    assert BitNet.from_config(config, max_tokens=7).metadata.num_output == 7
    llm.close()


def test_the_loop_stays_free(make_llm: MakeLLM) -> None:
    llm = make_llm(FakeReply(["a"] * 20, delay=0.01))

    async def longest_stall() -> float:
        stalls = []
        task = asyncio.create_task(aask(llm, "stream_chat"))
        while not task.done():
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            stalls.append(time.perf_counter() - before)
        assert text_of((await task)[-1]) == "a" * 20
        return sorted(stalls)[-3]  # other processes have their turns too

    assert asyncio.run(longest_stall()) < 0.15


def test_calls_run_at_the_same_time(make_llm: MakeLLM) -> None:
    llm = make_llm(FakeReply("a", delay=0.3))

    async def four() -> float:
        started = time.perf_counter()
        await asyncio.gather(*(llm.acomplete("Hi") for _ in range(4)))
        return time.perf_counter() - started

    assert asyncio.run(four()) < 4 * 0.6  # each waits twice: before its text and before its end


def n_running(llm: BitNet) -> int:
    return int(llm.client._engine.health().running)


def wait_until_idle(llm: BitNet) -> None:
    deadline = time.monotonic() + 10
    while n_running(llm):
        assert time.monotonic() < deadline, "the computation goes on"
        time.sleep(0.005)


@pytest.mark.parametrize("way", ["stream_chat", "stream_complete"])
def test_closing_a_stream_stops_it(make_llm: MakeLLM, way: str) -> None:
    llm = make_llm(FakeReply(["a"] * 1000, delay=0.02))
    stream = getattr(llm, way)(HI if "chat" in way else "Hi")
    assert next(stream).delta == "a"
    assert n_running(llm) == 1
    stream.close()
    wait_until_idle(llm)
    getattr(llm, way)(HI if "chat" in way else "Hi")  # and so does dropping one
    gc.collect()
    wait_until_idle(llm)


@pytest.mark.parametrize("way", ["astream_chat", "astream_complete"])
def test_closing_an_async_stream_stops_it(make_llm: MakeLLM, way: str) -> None:
    llm = make_llm(FakeReply(["a"] * 1000, delay=0.02))

    async def first() -> None:
        stream = await getattr(llm, way)(HI if "chat" in way else "Hi")
        assert (await anext(stream)).delta == "a"
        await stream.aclose()
        await asyncio.to_thread(wait_until_idle, llm)

    asyncio.run(first())


@pytest.mark.parametrize("way", ["achat", "acomplete"])
def test_cancelling_a_task_stops_it(make_llm: MakeLLM, way: str) -> None:
    llm = make_llm(FakeReply(["a"] * 1000, delay=0.02))

    async def cancelled() -> None:
        task = asyncio.create_task(getattr(llm, way)(HI if "chat" in way else "Hi"))
        while not n_running(llm):
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(wait_until_idle, llm)

    asyncio.run(cancelled())


def test_one_object_in_several_event_loops(make_llm: MakeLLM) -> None:
    llm = make_llm()
    assert [asyncio.run(llm.acomplete("Hi")).text for _ in range(3)] == ["Hello!"] * 3


def test_errors_come_through(make_llm: MakeLLM) -> None:
    llm = make_llm(FakeReply("a", refuse=bitnet.OverloadedError("busy")))
    with pytest.raises(bitnet.OverloadedError):
        llm.complete("Hi")
    with pytest.raises(bitnet.OverloadedError):
        asyncio.run(aask(llm, "stream_chat"))
    late = make_llm(FakeReply(["a", "b"], error=RuntimeError("defect")))
    with pytest.raises(RuntimeError, match="defect"):
        ask(late, "stream_complete")
    with pytest.raises(bitnet.ContextOverflowError, match="context of 90"):
        make_llm(engine={"n_ctx": 90}, max_tokens=8).complete("x" * 200)


def test_with_options(make_llm: MakeLLM) -> None:
    llm = make_llm(stop=["x"], temperature=0.5)
    other = llm.with_options(temperature=0.75, seed=4)
    assert (other.temperature, other.seed, other.stop, other.client is llm.client) == (0.75, 4, ["x"], True)
    assert (llm.temperature, llm.seed) == (0.5, None)
    assert other.stop is not llm.stop
    assert other.callback_manager is llm.callback_manager
    with pytest.raises(ValueError, match="temprature"):
        llm.with_options(temprature=1)
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        llm.with_options(temperature=-1)


def test_copies_and_pickles(make_llm: MakeLLM, caplog: pytest.LogCaptureFixture) -> None:
    original = BitNet(max_tokens=7, api_key="s3cret", temperature=0.5)
    for other in (pickle.loads(pickle.dumps(original)), copy.deepcopy(original), original.model_copy()):
        assert (other.max_tokens, other.temperature) == (7, 0.5)
        assert other.api_key.get_secret_value() == "s3cret"
    assert BitNet.from_dict(original.to_dict()).max_tokens == 7
    assert caplog.text == ""
    scripted = make_llm()
    assert copy.deepcopy(scripted).complete("Hi").text == "Hello!"
    with pytest.raises(TypeError, match="client of your own cannot be pickled"):
        pickle.dumps(scripted)


def test_no_secret_is_shown() -> None:
    llm = BitNet(base_url="http://127.0.0.1:9/v1", api_key="s3cret", config={"api_key": "s3cret"})
    shown = f"{llm!r} {llm} {llm.to_dict()} {llm.to_json()} {llm.metadata}"
    assert "s3cret" not in shown


def test_the_tokenizer_counts_as_the_model_does(make_llm: MakeLLM) -> None:
    tokenizer = make_llm().tokenizer
    assert tokenizer.encode("häh") == tokenizer("häh") == list("häh".encode())
