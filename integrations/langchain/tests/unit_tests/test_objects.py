"""Objects hold no engine: they are cheap, travel, share what is loaded, and are told apart by caches."""

from __future__ import annotations

import asyncio
import copy
import os
import pickle
import time
from pathlib import Path
from typing import Any

import pytest
from bitnet import BitNet, BitNetError, ModelNotFoundError, unload_all
from bitnet.engines import registry
from bitnet.testing import FakeEngine, FakeReply
from langchain_core.caches import InMemoryCache
from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import ConfigurableField
from pydantic import ValidationError

from langchain_bitnet import BitNetEmbeddings, BitNetLLM, ChatBitNet
from tests.fakes import scripted

QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every engine that is made during the test; none is loaded when it begins."""
    unload_all()
    made: list[Any] = []
    from bitnet.engines.native import NativeEngine

    original = NativeEngine.__init__

    def noted(self: Any, *arguments: Any, **options: Any) -> None:
        made.append(options)
        original(self, *arguments, **options)

    monkeypatch.setattr(NativeEngine, "__init__", noted)
    return made


def chat(**fields: Any) -> ChatBitNet:
    return ChatBitNet(**{"temperature": 0, "max_tokens": 20, **fields})


def test_nothing_is_loaded_before_the_first_call(loads: list[Any]) -> None:
    model = chat()
    assert model.profile is not None
    assert model.profile["max_input_tokens"] == BitNet(lazy=True).n_ctx
    model.bind_tools([]).bind(stop=["X"])
    assert loads == []
    assert model.invoke(QUESTION).content == ANSWER
    assert len(loads) == 1


def test_all_three_share_one_engine(loads: list[Any]) -> None:
    assert chat().invoke(QUESTION).content == ANSWER
    assert BitNetLLM(temperature=0, max_tokens=3).invoke("Once upon a time")
    assert len(BitNetEmbeddings().embed_query("fox")) == BitNet().info.hidden_size
    assert len(loads) == 1


def test_copies_and_pickles(loads: list[Any]) -> None:
    original = chat(stop=["\n"])
    assert original.invoke(QUESTION).content == ANSWER
    for other in (copy.copy(original), copy.deepcopy(original), pickle.loads(pickle.dumps(original))):
        assert other == original
        assert other._identifying_params == original._identifying_params
        assert other.invoke(QUESTION).content == ANSWER
    for plain in (BitNetLLM(max_tokens=3, seed=1), BitNetEmbeddings(query_prefix="q: ")):
        assert pickle.loads(pickle.dumps(plain)) == plain
    assert len(loads) == 1


def test_a_client_of_ones_own_stays_here() -> None:
    _, model = scripted("Hello")
    assert copy.deepcopy(model).invoke("Hi").content == "Hello"
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(model)


def test_configurable_fields_do_not_load_again(loads: list[Any]) -> None:
    configurable = chat().configurable_fields(
        temperature=ConfigurableField(id="temperature"), max_tokens=ConfigurableField(id="max_tokens")
    )
    assert configurable.invoke(QUESTION).content == ANSWER
    for n in (1, 2, 3):
        message = configurable.invoke(QUESTION, {"configurable": {"max_tokens": n}})
        assert message.usage_metadata is not None
        assert message.usage_metadata["output_tokens"] == n
    assert len(loads) == 1


def test_configurable_alternatives(loads: list[Any]) -> None:
    _, fake = scripted("scripted")
    either = chat().configurable_alternatives(ConfigurableField(id="who"), default_key="real", fake=fake)
    assert either.invoke(QUESTION, {"configurable": {"who": "fake"}}).content == "scripted"
    assert loads == []
    assert either.invoke(QUESTION).content == ANSWER


def test_a_model_stays_for_as_long_as_it_is_told(loads: list[Any]) -> None:
    model = chat(keep_alive=0)
    model.invoke(QUESTION)
    model.invoke(QUESTION)
    assert len(loads) == 2
    assert not any(entry.engine is not None for entry in registry._entries.values())
    kept = chat(keep_alive=None)
    kept.invoke(QUESTION)
    kept.invoke(QUESTION)
    assert len(loads) == 3
    assert any(entry.engine is not None for entry in registry._entries.values())


async def test_a_model_that_goes_at_once_in_an_event_loop(loads: list[Any]) -> None:
    model = chat(keep_alive=0)
    answers = await asyncio.gather(model.ainvoke(QUESTION), model.ainvoke(QUESTION))
    assert [answer.content for answer in answers] == [ANSWER, ANSWER]
    assert not any(entry.engine is not None for entry in registry._entries.values())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_after_a_fork() -> None:
    model = chat()
    assert model.invoke(QUESTION).content == ANSWER
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if model.invoke(QUESTION).content == ANSWER else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert model.invoke(QUESTION).content == ANSWER


def test_what_is_wrong_is_told_by_the_constructor(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="quant_type"):
        ChatBitNet(quant_type="i3")
    with pytest.raises(ValidationError, match="cannot read the configuration file"):
        ChatBitNet(config=tmp_path / "none.yaml")
    with pytest.raises(ValidationError, match="must be a URL"):
        ChatBitNet(base_url="localhost:8080")
    with pytest.raises(ValidationError, match="temperature"):
        ChatBitNet(temperature=-1)
    for kind in (ChatBitNet, BitNetLLM, BitNetEmbeddings):
        with pytest.raises(ValidationError, match=r"modell\s+Extra inputs"):
            kind(modell="x")
    missing = ChatBitNet(model=str(tmp_path / "none.gguf"))  # may still come
    with pytest.raises(ModelNotFoundError, match=r"none\.gguf"):
        missing.invoke("Hi")


def test_no_secret_is_shown() -> None:
    model = ChatBitNet(base_url="http://127.0.0.1:9", api_key="s3cret")
    shown = (
        repr(model) + str(model._identifying_params) + str(model._get_llm_string()) + model.model_dump_json()
    )
    assert "s3cret" not in shown
    with pytest.raises(ValidationError) as caught:
        ChatBitNet(api_key="s3cret", quant_type="i3")
    assert "s3cret" not in str(caught.value)


def test_a_configuration(tmp_path: Path, model_path: Path) -> None:
    file = tmp_path / "bitnet.yaml"
    file.write_text(f"bitnet:\n  model_path: {model_path}\n  n_ctx: 128\n  max_tokens: 5\n  temperature: 0\n")
    model = ChatBitNet.from_config(file)
    message = model.invoke(QUESTION)
    assert message.usage_metadata is not None
    assert message.usage_metadata["output_tokens"] == 5
    assert message.response_metadata["model_name"] == model_path.stem
    assert model.profile is not None
    assert model.profile["max_input_tokens"] == 128
    assert ChatBitNet.from_config(file, max_tokens=20).invoke(QUESTION).content == ANSWER
    same = ChatBitNet.from_config({"model_path": str(model_path), "n_ctx": 128})
    assert same.profile is not None
    assert same.profile["max_input_tokens"] == 128
    assert BitNetLLM(config=file).invoke("Once upon a time")
    assert BitNetEmbeddings.from_config(file).known_context_size() == 128


def test_where_a_server_is_asked_nothing_is_loaded(loads: list[Any]) -> None:
    model = ChatBitNet(base_url="http://127.0.0.1:9", model="big", max_retries=0, n_ctx=4096)
    assert model.profile is not None
    assert model.profile["max_input_tokens"] == 4096
    with pytest.raises((BitNetError, ConnectionError)):
        model.invoke("Hi")
    assert loads == []
    assert "max_input_tokens" not in (ChatBitNet(base_url="http://127.0.0.1:9").profile or {})


# --- caches ---


def key(chat_model: BaseChatModel, **call: Any) -> str:
    return chat_model._get_llm_string(**call)


def test_the_cache_key_tells_apart_what_answers_differently(tmp_path: Path, model_path: Path) -> None:
    first, second = tmp_path / "a.gguf", tmp_path / "b.gguf"
    for path in (first, second):
        path.write_bytes(model_path.read_bytes())
    file = tmp_path / "bitnet.yaml"
    file.write_text("bitnet:\n  temperature: 0\n")
    models = [
        ChatBitNet(),
        ChatBitNet(model=str(first)),
        ChatBitNet(model=str(second)),
        ChatBitNet(base_url="http://127.0.0.1:9"),
        ChatBitNet(base_url="http://127.0.0.1:10"),
        ChatBitNet(config=file),
        ChatBitNet(n_ctx=100),
        ChatBitNet(embd_type="q8_0"),
        ChatBitNet(temperature=0),
        ChatBitNet(temperature=1),
        ChatBitNet(top_k=1),
        ChatBitNet(top_p=0.5),
        ChatBitNet(min_p=0.5),
        ChatBitNet(repetition_penalty=1.5),
        ChatBitNet(presence_penalty=1),
        ChatBitNet(frequency_penalty=1),
        ChatBitNet(seed=1),
        ChatBitNet(logit_bias={1: 2.0}),
        ChatBitNet(max_tokens=3),
        ChatBitNet(stop=["a"]),
        ChatBitNet(n=2),
        ChatBitNet(logprobs=True),
        ChatBitNet(top_logprobs=2),
        ChatBitNet(parallel_tool_calls=True),
        ChatBitNet(reasoning=True),
        ChatBitNet(template_args={"a": 1}),
        scripted("a")[1],
        scripted("a")[1],
    ]
    keys = [key(model) for model in models]
    assert len(set(keys)) == len(keys)
    calls: list[dict[str, Any]] = [{}, {"stop": ["a"]}, {"model": "x"}, {"seed": 2}, {"tools": [{}]}]
    assert len({key(models[0], **call) for call in calls}) == len(calls)
    assert key(ChatBitNet()) == keys[0]
    assert key(ChatBitNet(timeout=5, api_key="x", keep_alive=1, streaming=True)) == keys[0]
    assert key(pickle.loads(pickle.dumps(models[1]))) == keys[1]


def test_the_cache_key_changes_with_the_files(tmp_path: Path, model_path: Path) -> None:
    path, file = tmp_path / "a.gguf", tmp_path / "bitnet.yaml"
    path.write_bytes(model_path.read_bytes())
    file.write_text(f"bitnet:\n  model_path: {path}\n")
    model, configured = ChatBitNet(model=str(path)), ChatBitNet(config=file)
    before = key(model), key(configured)
    os.utime(path, ns=(1, 1))
    assert key(model) != before[0]
    assert key(configured) != before[1]


def test_a_cache_never_gives_anothers_answer() -> None:
    cache = InMemoryCache()
    (one_engine, one), (other_engine, other) = (scripted(text, cache=cache) for text in ("one", "other"))
    assert [one.invoke("Hi").content for _ in range(2)] == ["one", "one"]
    assert [other.invoke("Hi").content for _ in range(2)] == ["other", "other"]
    assert one.invoke("Hi", temperature=0).content == "one"
    assert (len(one_engine.requests), len(other_engine.requests)) == (2, 1)


# --- many at the same time ---


class Peak:
    """Counts how many requests are answered at the same time."""

    def __init__(self, n_batch: int) -> None:
        self.engine = FakeEngine(self._answer, n_batch=n_batch)
        self.client = BitNet.from_engine(self.engine)
        self.highest = 0

    def _answer(self, request: Any) -> FakeReply:
        self.highest = max(self.highest, self.engine.health().running + 1)
        return FakeReply("Hello", delay=0.15)


@pytest.mark.parametrize("n_batch", [2, 6])
async def test_a_batch_fills_the_engine(n_batch: int) -> None:
    inputs = [str(n) for n in range(4 * n_batch)]
    peak = Peak(n_batch)
    model = ChatBitNet(client=peak.client)
    assert [m.content for m in model.batch(inputs)] == ["Hello"] * len(inputs)
    assert n_batch <= peak.highest <= 2 * n_batch
    peak.highest = 0
    assert len(await model.abatch(inputs)) == len(inputs)
    assert n_batch <= peak.highest <= 2 * n_batch
    peak.highest = 0
    model.batch(inputs[:4], {"max_concurrency": 1})
    assert peak.highest == 1
    peak.highest = 0
    await asyncio.gather(*(model.ainvoke(text) for text in inputs))
    assert peak.highest >= n_batch


def test_batches_keep_their_order_and_their_errors() -> None:
    def answer(request: Any) -> FakeReply:
        text = request.messages[0].content
        return FakeReply(text.upper(), error=ZeroDivisionError() if text == "c" else None)

    _, model = scripted(answer)
    results = model.batch(list("abcd"), return_exceptions=True)
    assert [getattr(result, "content", None) for result in results] == ["A", "B", None, "D"]
    assert isinstance(results[2], ZeroDivisionError)
    done = dict(model.batch_as_completed(list("abd")))
    assert [done[index].content for index in range(3)] == ["A", "B", "D"]


async def test_an_event_loop_is_never_held_up() -> None:
    """Native async: no thread of the loop's pool is used while answers are made."""
    _, model = scripted(FakeReply(["a"] * 20, delay=0.01))
    from concurrent.futures import ThreadPoolExecutor

    class NoThreads(ThreadPoolExecutor):
        def submit(self, *arguments: Any, **options: Any) -> Any:
            names.append(getattr(arguments[0], "__qualname__", repr(arguments[0])))
            return super().submit(*arguments, **options)

    names: list[str] = []
    asyncio.get_running_loop().set_default_executor(NoThreads(4))
    longest, last = 0.0, time.perf_counter()

    async def tick() -> None:
        nonlocal longest, last
        while True:
            await asyncio.sleep(0.005)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now

    ticking = asyncio.create_task(tick())
    assert (await model.ainvoke("Hi")).content == "a" * 20
    chunks = [chunk async for chunk in model.astream("Hi")]
    ticking.cancel()
    assert len(chunks) == 21
    assert len(names) <= 2  # the start of each answer, where prompts are made into tokens
    assert longest < 1
