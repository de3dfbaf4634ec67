"""ChatBitNet and BitNetEmbeddings inside what people build: chains, agents, graphs, histories, retrieval."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from bitnet import Request, ToolCall
from bitnet.testing import FakeReply
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.chat_history import InMemoryChatMessageHistory
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage, trim_messages
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import RunnableParallel, RunnablePassthrough
from langchain_core.runnables.history import RunnableWithMessageHistory
from langchain_core.tools import tool
from langchain_core.vectorstores import InMemoryVectorStore
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from pydantic import BaseModel

from langchain_bitnet import BitNetEmbeddings, ChatBitNet
from tests.fakes import scripted


@tool
def get_weather(city: str) -> str:
    """The weather of a city."""
    return f"It is sunny in {city}."


class Report(BaseModel):
    """A report on the weather."""

    city: str
    sunny: bool


REPORT = {"city": "Paris", "sunny": True}
Script = Callable[[Request], FakeReply]


def weather_girl(last: FakeReply) -> Script:
    """Asks for the weather first, and answers `last` once she knows it."""

    def reply(request: Request) -> FakeReply:
        assert request.messages is not None
        if request.messages[-1].role != "tool":
            return FakeReply(tool_calls=[ToolCall("1", "get_weather", {"city": "Paris"})])  # type: ignore[arg-type]
        assert request.messages[-1].content == "It is sunny in Paris."
        return last

    return reply


def ask(agent: Any) -> dict[str, Any]:
    result: dict[str, Any] = agent.invoke({"messages": [HumanMessage("How is the weather in Paris?")]})
    return result


def test_an_agent_with_tools() -> None:
    engine, chat = scripted(weather_girl(FakeReply("It is sunny.")))
    messages = ask(create_agent(chat, [get_weather], system_prompt="Be brief."))["messages"]
    assert [type(message) for message in messages] == [HumanMessage, AIMessage, ToolMessage, AIMessage]
    assert messages[1].tool_calls[0]["args"] == {"city": "Paris"}
    assert messages[2].tool_call_id == messages[1].tool_calls[0]["id"]
    assert messages[-1].content == "It is sunny."
    first, second = engine.requests
    assert first.messages is not None
    assert [message.role for message in first.messages] == ["system", "user"]
    assert second.messages is not None
    assert second.messages[2].tool_calls[0].parsed == {"city": "Paris"}
    assert {request.tool_choice for request in engine.requests} == {"auto"}


async def test_an_agent_in_an_event_loop() -> None:
    _, chat = scripted(weather_girl(FakeReply("It is sunny.")))
    agent = create_agent(chat, [get_weather])
    result = await agent.ainvoke({"messages": [HumanMessage("How is the weather in Paris?")]})
    assert result["messages"][-1].content == "It is sunny."


def test_an_agent_without_tools() -> None:
    _, chat = scripted("Hello!")
    assert ask(create_agent(chat, []))["messages"][-1].content == "Hello!"


@pytest.mark.parametrize("response_format", [Report, ProviderStrategy(Report)], ids=["auto", "provider"])
def test_tools_and_a_response_format_in_one_agent(response_format: Any) -> None:
    """The profile says that formats are enforced, so a plain schema is one; every request has both."""
    engine, chat = scripted(weather_girl(FakeReply(json.dumps(REPORT))))
    result = ask(create_agent(chat, [get_weather], response_format=response_format))
    assert result["structured_response"] == Report(**REPORT)
    assert [len(request.tools) for request in engine.requests] == [1, 1]
    formats = [request.response_format or {} for request in engine.requests]
    assert [form["type"] for form in formats] == ["json_schema", "json_schema"]
    assert set(formats[0]["json_schema"]["schema"]["properties"]) == {"city", "sunny"}


def test_a_response_that_is_a_tool() -> None:
    engine, chat = scripted(weather_girl(FakeReply(tool_calls=[ToolCall("2", "Report", REPORT)])))  # type: ignore[arg-type]
    result = ask(create_agent(chat, [get_weather], response_format=ToolStrategy(Report)))
    assert result["structured_response"] == Report(**REPORT)
    assert [[entry.name for entry in request.tools] for request in engine.requests] == 2 * [
        ["get_weather", "Report"]
    ]
    assert {request.tool_choice for request in engine.requests} == {"required"}


def test_the_real_engine_in_an_agent_with_a_response_format() -> None:
    """Whatever a small model says, it is a report, or a call of the tool that ends in one."""
    chat = ChatBitNet(temperature=0, max_tokens=80)
    agent = create_agent(chat, [], response_format=Report)
    assert isinstance(ask(agent)["structured_response"], Report)


# --- langgraph ---


def test_a_graph_streams_tokens() -> None:
    _, chat = scripted(FakeReply(["It ", "is ", "sunny."]))

    def answer(state: MessagesState) -> dict[str, Any]:
        return {"messages": [chat.invoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("answer", answer)
    graph.add_edge(START, "answer")
    graph.add_edge("answer", END)
    pieces = [
        message.content
        for message, _ in graph.compile().stream({"messages": [HumanMessage("Hi")]}, stream_mode="messages")
    ]
    assert [piece for piece in pieces if piece] == ["It ", "is ", "sunny."]


async def test_an_agent_streams_its_calls() -> None:
    start = '<tool_call>{"name": "get_weather", "arguments": {"city": "'
    _, chat = scripted(
        lambda request: (
            FakeReply(["It is", " sunny."])
            if request.messages[-1].role == "tool"
            else FakeReply([start, "Par", 'is"', "}}</tool_call>"])
        )
    )
    agent = create_agent(chat, [get_weather])
    pieces, text = [], ""
    async for message, _ in agent.astream({"messages": [HumanMessage("Weather?")]}, stream_mode="messages"):
        if isinstance(message, AIMessageChunk):
            pieces += message.tool_call_chunks
            text += str(message.content)
    assert [piece["name"] for piece in pieces if piece["name"]] == ["get_weather"]
    assert len(pieces) >= 3
    assert json.loads("".join(piece["args"] or "" for piece in pieces)) == {"city": "Paris"}
    assert text == "It is sunny."


def test_a_graph_that_remembers() -> None:
    engine, chat = scripted("Hello!")
    agent = create_agent(chat, [], checkpointer=InMemorySaver())
    for thread, text in (("1", "I am Anna."), ("1", "Who am I?"), ("2", "Who am I?")):
        agent.invoke({"messages": [HumanMessage(text)]}, {"configurable": {"thread_id": thread}})
    assert [len(request.messages or ()) for request in engine.requests] == [1, 3, 1]


# --- chains ---


def test_a_chain() -> None:
    engine, chat = scripted(FakeReply(["Pa", "ris"]))
    prompt = ChatPromptTemplate.from_messages(
        [("system", "Be brief."), ("human", "The capital of {country}?")]
    )
    chain = prompt | chat.bind(stop=["\n"]) | StrOutputParser()
    assert chain.invoke({"country": "France"}) == "Paris"
    assert "".join(chain.stream({"country": "France"})) == "Paris"
    assert chain.batch([{"country": "France"}] * 3) == ["Paris"] * 3
    assert engine.requests[0].messages is not None
    assert [m.content for m in engine.requests[0].messages] == ["Be brief.", "The capital of France?"]
    both = RunnableParallel(a=chain, b=RunnablePassthrough()).invoke({"country": "France"})
    assert both == {"a": "Paris", "b": {"country": "France"}}
    _, broken = scripted(FakeReply(error=ZeroDivisionError()))
    assert broken.with_fallbacks([chat]).invoke("Hi").content == "Paris"
    assert chat.with_retry().with_config(tags=["x"]).invoke("Hi").content == "Paris"


async def test_events_of_a_chain() -> None:
    _, chat = scripted(FakeReply(["Pa", "ris"]))
    events = [event async for event in (chat | StrOutputParser()).astream_events("Hi", version="v2")]
    tokens = [event["data"]["chunk"].content for event in events if event["event"] == "on_chat_model_stream"]
    assert [token for token in tokens if token] == ["Pa", "ris"]
    (end,) = [event for event in events if event["event"] == "on_chat_model_end"]
    assert end["metadata"]["ls_provider"] == "bitnet"
    assert end["data"]["output"].usage_metadata["output_tokens"] == 5


def test_a_history() -> None:
    engine, chat = scripted("Hello!")
    histories: dict[str, InMemoryChatMessageHistory] = {}

    def history(session_id: str) -> InMemoryChatMessageHistory:
        return histories.setdefault(session_id, InMemoryChatMessageHistory())

    prompt = ChatPromptTemplate.from_messages([MessagesPlaceholder("history"), ("human", "{text}")])
    talk = RunnableWithMessageHistory(
        prompt | chat, history, input_messages_key="text", history_messages_key="history"
    )
    for session, text in (("a", "one"), ("a", "two"), ("b", "three")):
        talk.invoke({"text": text}, {"configurable": {"session_id": session}})
    told = [[message.content for message in request.messages or ()] for request in engine.requests]
    assert told == [["one"], ["one", "Hello!", "two"], ["three"]]
    assert [len(history.messages) for history in histories.values()] == [4, 2]


def test_a_history_that_is_trimmed_by_the_models_own_tokens() -> None:
    _, chat = scripted("Hello!")
    messages = [HumanMessage("x" * 40), AIMessage("y" * 40), HumanMessage("short")]
    kept = trim_messages(messages, max_tokens=45, token_counter=chat, strategy="last", start_on="human")
    assert kept == [HumanMessage("short")]
    assert trim_messages(messages, max_tokens=400, token_counter=chat) == messages


def test_a_conversation_is_not_computed_twice() -> None:
    chat = ChatBitNet(temperature=0, max_tokens=8)
    messages: list[Any] = [HumanMessage("Tell me a story about a fox who lives in a small house by the sea.")]
    first = chat.invoke(messages)
    second = chat.invoke([*messages, first, HumanMessage("Go on.")])
    assert first.usage_metadata is not None
    assert second.usage_metadata is not None
    assert (
        second.usage_metadata["input_token_details"]["cache_read"] >= first.usage_metadata["input_tokens"] - 1
    )


# --- retrieval ---

FACTS = [
    "The capital of France is Paris.",
    "The capital of Japan is Tokyo.",
    "A fox lives in the wood and eats mice.",
    "Seven and five make twelve.",
]


async def test_retrieval() -> None:
    store = InMemoryVectorStore.from_texts(FACTS, BitNetEmbeddings())
    assert [document.page_content for document in store.similarity_search(FACTS[1], k=1)] == [FACTS[1]]
    retriever = store.as_retriever(search_kwargs={"k": 1})
    engine, chat = scripted("Paris.")
    prompt = ChatPromptTemplate.from_template("{context}\n{question}")

    def join(documents: list[Document]) -> str:
        return "\n".join(document.page_content for document in documents)

    chain = (
        {"context": retriever | join, "question": RunnablePassthrough()} | prompt | chat | StrOutputParser()
    )
    assert chain.invoke(FACTS[0]) == await chain.ainvoke(FACTS[0]) == "Paris."
    assert engine.requests[0].messages == engine.requests[1].messages
    assert engine.requests[0].messages is not None
    assert engine.requests[0].messages[0].content == f"{FACTS[0]}\n{FACTS[0]}"
