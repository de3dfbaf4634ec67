"""The entry points of llama_index.core that query documents and talk about them, on a scripted engine."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from llama_index.core import Document, DocumentSummaryIndex, SummaryIndex, TreeIndex, VectorStoreIndex
from llama_index.core.chat_engine.types import ChatMode
from llama_index.core.evaluation import (
    AnswerRelevancyEvaluator,
    ContextRelevancyEvaluator,
    CorrectnessEvaluator,
    FaithfulnessEvaluator,
    GuidelineEvaluator,
    PairwiseComparisonEvaluator,
    RelevancyEvaluator,
)
from llama_index.core.extractors import (
    KeywordExtractor,
    QuestionsAnsweredExtractor,
    SummaryExtractor,
    TitleExtractor,
)
from llama_index.core.postprocessor import LLMRerank, StructuredLLMRerank
from llama_index.core.query_engine import RetrieverQueryEngine, RouterQueryEngine, SubQuestionQueryEngine
from llama_index.core.question_gen import LLMQuestionGenerator
from llama_index.core.response_synthesizers import ResponseMode
from llama_index.core.retrievers import QueryFusionRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.core.selectors import LLMSingleSelector, PydanticMultiSelector, PydanticSingleSelector
from llama_index.core.tools import QueryEngineTool, ToolMetadata
from llama_index.embeddings.bitnet import BitNetEmbedding
from llama_index.llms.bitnet import BitNet, BitNetSelector, formats
from pydantic import BaseModel
from scripted import MakeLLM, prompts_of, requests_of

from bitnet import Request
from bitnet.testing import FakeReply

TEXTS = ["Ada was born in London.", "Bob bakes bread.", "Cleo sails a ship."]
ANSWER = "In London, I think."


def index_of(llm: BitNet, kind: Any = VectorStoreIndex) -> Any:
    """Scripted models embed too."""
    arguments: dict[str, Any] = {"embed_model": BitNetEmbedding(client=llm.client)}
    if kind is not VectorStoreIndex:
        arguments["llm"] = llm
    return kind.from_documents([Document(text=text) for text in TEXTS], **arguments)


def query(engine: Any, text: str = "Where was Ada born?", is_async: bool = False) -> Any:
    return asyncio.run(engine.aquery(text)) if is_async else engine.query(text)


@pytest.mark.parametrize("how", ["sync", "async", "stream", "astream"])
@pytest.mark.parametrize("mode", ["compact", "refine", "tree_summarize", "simple_summarize", "accumulate"])
def test_response_modes(make_llm: MakeLLM, mode: str, how: str) -> None:
    llm = make_llm(FakeReply(["In London", ", I think."]))
    streaming = "stream" in how and mode != "accumulate"  # which the framework does not stream
    engine = index_of(llm).as_query_engine(
        llm=llm, response_mode=ResponseMode(mode), streaming=streaming, similarity_top_k=3
    )

    async def streamed() -> str:
        response = await engine.aquery("Where was Ada born?")
        return "".join([piece async for piece in response.async_response_gen()])

    if how == "astream" and streaming:
        text = asyncio.run(streamed())
    else:
        response = query(engine, is_async=how.startswith("a"))
        text = "".join(response.response_gen) if streaming else str(response)
    assert ANSWER in text
    n_requests = {"refine": 3, "accumulate": 3}.get(mode, 1)
    assert len(requests_of(llm)) == n_requests
    assert all(request.messages is not None for request in requests_of(llm))
    told = "\n".join(prompts_of(llm))
    assert all(text in told for text in TEXTS)


class City(BaseModel):
    """A city."""

    name: str


def test_output_cls_of_a_query_engine(make_llm: MakeLLM) -> None:
    llm = make_llm('{"name": "London"}')
    engine = index_of(llm).as_query_engine(llm=llm, output_cls=City, response_mode=ResponseMode.COMPACT)
    response = query(engine)
    assert response.response == City(name="London")
    assert query(engine, is_async=True).response.name == "London"
    assert all((request.response_format or {})["type"] == "json_schema" for request in requests_of(llm))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(
    "mode", [ChatMode.SIMPLE, ChatMode.CONTEXT, ChatMode.CONDENSE_QUESTION, ChatMode.CONDENSE_PLUS_CONTEXT]
)
def test_chat_engines(make_llm: MakeLLM, mode: ChatMode, is_async: bool, stream: bool) -> None:
    llm = make_llm(FakeReply(["In London", ", I think."]), system_prompt=None)
    engine = index_of(llm).as_chat_engine(chat_mode=mode, llm=llm)

    async def turn(text: str) -> str:
        if stream:
            response = await engine.astream_chat(text) if is_async else engine.stream_chat(text)
            if is_async:
                return "".join([piece async for piece in response.async_response_gen()])
            return "".join(response.response_gen)
        return str(await engine.achat(text) if is_async else engine.chat(text))

    if is_async:

        async def turns() -> list[str]:
            return [await turn("Where was Ada born?"), await turn("And when?")]

        assert asyncio.run(turns()) == [ANSWER, ANSWER]
    else:
        for question in ("Where was Ada born?", "And when?"):
            text = engine.stream_chat(question) if stream else engine.chat(question)
            assert ("".join(text.response_gen) if stream else str(text)) == ANSWER
    assert len(engine.chat_history) == 4
    # Whatever the engine does, the model is told a conversation, not a bare text.
    assert all(request.messages is not None for request in requests_of(llm))


def test_query_fusion(make_llm: MakeLLM) -> None:
    llm = make_llm("Where is London?\nWho is Ada?")
    retriever = index_of(llm).as_retriever(similarity_top_k=1)
    fusion = QueryFusionRetriever([retriever], llm=llm, num_queries=3, use_async=False, similarity_top_k=2)
    assert len(fusion.retrieve("Where was Ada born?")) >= 1
    assert prompts_of(llm)[0].startswith("user: ")


def test_tree_and_summary_indices(make_llm: MakeLLM) -> None:
    llm = make_llm("A summary.")
    assert str(query(index_of(llm, SummaryIndex).as_query_engine(llm=llm))) == "A summary."
    tree = TreeIndex.from_documents([Document(text=text) for text in TEXTS], llm=llm, num_children=2)
    chooser = llm.with_options(response_format=formats.number(2))
    engine = RetrieverQueryEngine.from_args(tree.as_retriever(retriever_mode="all_leaf"), llm=llm)
    assert str(query(engine)) == "A summary."
    assert chooser.response_format == {"type": "choice", "choices": ["1", "2"]}
    documents = index_of(llm, DocumentSummaryIndex)
    assert documents.get_document_summary(next(iter(documents.ref_doc_info))) == "A summary."


CHOICES = [ToolMetadata(description=text, name=f"tool{i}") for i, text in enumerate(TEXTS)]


@pytest.mark.parametrize("is_async", [False, True])
def test_the_selector(make_llm: MakeLLM, is_async: bool) -> None:
    def select(selector: BitNetSelector) -> list[int]:
        query = QueryBundle("Who bakes?")
        result = (
            asyncio.run(selector.aselect(CHOICES, query)) if is_async else selector.select(CHOICES, query)
        )
        return list(result.inds)

    llm = make_llm("2")
    assert select(BitNetSelector(llm)) == [1]
    (request,) = requests_of(llm)
    assert request.response_format == {"type": "regex", "pattern": "(1|2|3)(, (1|2|3)){0,0}"}
    assert "(2) Bob bakes bread." in prompts_of(llm)[0]
    several = make_llm("3, 1, 3")
    assert select(BitNetSelector(several, multi=True)) == [2, 0]
    assert (requests_of(several)[0].response_format or {})["pattern"].endswith("{0,2}")
    assert select(BitNetSelector(make_llm("1"), multi=True, max_outputs=1)) == [0]
    with pytest.raises(ValueError, match="at least 1"):
        BitNetSelector(llm, max_outputs=0)
    with pytest.raises(ValueError, match="nothing to select"):
        BitNetSelector(llm).select([], QueryBundle("x"))


def test_prompts_of_the_selector_can_be_changed(make_llm: MakeLLM) -> None:
    llm = make_llm("1")
    selector = BitNetSelector(llm)
    prompt = selector.get_prompts()["prompt"]
    selector.update_prompts({"prompt": prompt.partial_format(query_str="Own words")})
    assert selector.select(CHOICES, QueryBundle("x")).ind == 0


def test_the_frameworks_selectors(make_llm: MakeLLM) -> None:
    call = '<tool_call>{"name": "SingleSelection", "arguments": {"index": 2, "reason": "bread"}}</tool_call>'
    llm = make_llm(call)
    assert PydanticSingleSelector.from_defaults(llm=llm).select(CHOICES, QueryBundle("x")).ind == 1
    assert requests_of(llm)[0].tool_choice == "required"
    call = (
        '<tool_call>{"name": "MultiSelection", "arguments": '
        '{"selections": [{"index": 2, "reason": "a"}, {"index": 1, "reason": "b"}]}}</tool_call>'
    )
    multi = PydanticMultiSelector.from_defaults(llm=make_llm(call)).select(CHOICES, QueryBundle("x"))
    assert multi.inds == [1, 0]
    llm = make_llm('[{"choice": 3, "reason": "ship"}]', response_format=formats.selection(3))
    assert LLMSingleSelector.from_defaults(llm=llm).select(CHOICES, QueryBundle("x")).ind == 2


@pytest.mark.parametrize("is_async", [False, True])
def test_a_router(make_llm: MakeLLM, is_async: bool) -> None:
    def reply(request: Request) -> str:
        return "2" if request.response_format else ANSWER

    llm = make_llm(reply)
    tools = [
        QueryEngineTool.from_defaults(
            index_of(llm).as_query_engine(llm=llm), name=f"tool{i}", description=text
        )
        for i, text in enumerate(TEXTS)
    ]
    router = RouterQueryEngine.from_defaults(tools, llm=llm, selector=BitNetSelector(llm))
    response = query(router, is_async=is_async)
    assert str(response) == ANSWER
    assert response.metadata["selector_result"].ind == 1


def test_sub_questions(make_llm: MakeLLM) -> None:
    def reply(request: Request) -> str:
        if request.response_format:
            return '{"items": [{"sub_question": "Who is Ada?", "tool_name": "people"}]}'
        return ANSWER

    llm = make_llm(reply)
    tool = QueryEngineTool.from_defaults(
        index_of(llm).as_query_engine(llm=llm), name="people", description="About people."
    )
    asking = llm.with_options(response_format=formats.sub_questions(["people"]))
    engine = SubQuestionQueryEngine.from_defaults(
        [tool],
        llm=llm,
        question_gen=LLMQuestionGenerator.from_defaults(llm=asking),
        use_async=False,
        verbose=False,
    )
    response = query(engine)
    assert str(response) == ANSWER
    assert "Sub question: Who is Ada?" in response.source_nodes[0].get_content()


def test_rerank(make_llm: MakeLLM) -> None:
    nodes = [NodeWithScore(node=TextNode(text=text), score=0.5) for text in TEXTS]
    llm = make_llm("Doc: 3, Relevance: 9\nDoc: 1, Relevance: 2", response_format=formats.ranking(3))
    ranked = LLMRerank(llm=llm, choice_batch_size=3, top_n=2).postprocess_nodes(nodes, query_str="A ship?")
    assert [(node.get_content(), node.score) for node in ranked] == [(TEXTS[2], 9.0), (TEXTS[0], 2.0)]
    assert (requests_of(llm)[0].response_format or {})["type"] == "regex"
    text = '{"documents": [{"document_number": 2, "relevance": 8}]}'
    structured = StructuredLLMRerank(llm=make_llm(text), choice_batch_size=3, top_n=1)
    assert [node.get_content() for node in structured.postprocess_nodes(nodes, query_str="Bread?")] == [
        TEXTS[1]
    ]


EVALUATIONS = [
    (FaithfulnessEvaluator, formats.YES_NO, "YES", True, 1.0),
    (FaithfulnessEvaluator, formats.YES_NO, "NO", False, 0.0),
    (RelevancyEvaluator, formats.YES_NO, "YES", True, 1.0),
    (CorrectnessEvaluator, formats.CORRECTNESS, "4.5\nGood.", True, 4.5),
    (AnswerRelevancyEvaluator, formats.result(2), "It fits.[RESULT] 2", None, 1.0),
    (ContextRelevancyEvaluator, formats.result(4), "Half.[RESULT] 2", None, 0.5),
    (GuidelineEvaluator, formats.GUIDELINE, '{"passing": true, "feedback": "Good."}', True, 1.0),
]


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(("kind", "form", "text", "passing", "score"), EVALUATIONS)
def test_evaluators(
    make_llm: MakeLLM, kind: Any, form: Any, text: str, passing: Any, score: float, is_async: bool
) -> None:
    llm = make_llm(text)
    evaluator = kind(llm=llm.with_options(response_format=form))
    arguments = {"query": "Q?", "response": "R.", "contexts": ["C."], "reference": "R!"}
    result = asyncio.run(evaluator.aevaluate(**arguments)) if is_async else evaluator.evaluate(**arguments)
    assert (result.passing, result.score) == (passing, score)
    assert requests_of(llm)[0].response_format == form


def test_pairwise_comparison(make_llm: MakeLLM) -> None:
    llm = make_llm(["A is better[[A]]", "still A[[B]]"], response_format=formats.PAIRWISE)
    result = PairwiseComparisonEvaluator(llm=llm).evaluate(query="Q?", response="a", second_response="b")
    assert (result.score, result.passing) == (1.0, True)


@pytest.mark.parametrize(
    ("extractor", "key"),
    [
        (TitleExtractor, "document_title"),
        (KeywordExtractor, "excerpt_keywords"),
        (QuestionsAnsweredExtractor, "questions_this_excerpt_can_answer"),
        (SummaryExtractor, "section_summary"),
    ],
)
def test_extractors(make_llm: MakeLLM, extractor: Any, key: str) -> None:
    llm = make_llm("Bread")
    nodes = extractor(llm=llm, show_progress=False).process_nodes([TextNode(text=text) for text in TEXTS])
    assert [node.metadata[key] for node in nodes] == ["Bread"] * 3
