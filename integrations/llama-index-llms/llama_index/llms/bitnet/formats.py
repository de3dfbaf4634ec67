"""What LlamaIndex's own prompts expect of an answer, as response_format of an LLM.

    evaluator = FaithfulnessEvaluator(llm=llm.with_options(response_format=formats.YES_NO))

They make the form certain, so that nothing has to be guessed from free text; what is said in it is up to the
model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.evaluation.guideline import EvaluationData
from llama_index.core.question_gen.types import SubQuestionList

MAX_REASON = 300  # characters; a small model may not find an end by itself
# As a rule of its own, so that what follows it is a string, which is found when tokens are about to run out.
_REASON = rf"REASON: /[^\s\[\]][^\n\[\]]{{0,{MAX_REASON - 1}}}/"

YES_NO: dict[str, Any] = {"type": "choice", "choices": ["YES", "NO"]}
"""FaithfulnessEvaluator and RelevancyEvaluator. (They look for "yes" anywhere, and would find it in
"NO, not yesterday".)"""

CORRECTNESS: dict[str, Any] = {
    "type": "regex",
    "pattern": rf"(5\.0|[1-4]\.[05])\n[^\s\n][^\n]{{0,{MAX_REASON - 1}}}",
}
"""CorrectnessEvaluator: a score from 1.0 to 5.0 in a line of its own, and the reason."""

PAIRWISE: dict[str, Any] = {
    "type": "grammar",
    "grammar": f'start: REASON "[[" VERDICT "]]"\nVERDICT: /[ABC]/\n{_REASON}',
}
"""PairwiseComparisonEvaluator: the reason, and [[A]], [[B]] or [[C]]."""

GUIDELINE: dict[str, Any] = {
    "type": "json_schema",
    "schema": {
        **EvaluationData.model_json_schema(),
        "properties": {
            "passing": {"type": "boolean"},
            "feedback": {"type": "string", "maxLength": MAX_REASON},
        },
        "required": ["passing", "feedback"],
    },
}
"""GuidelineEvaluator."""


def result(highest: int) -> dict[str, Any]:
    """AnswerRelevancyEvaluator (highest=2) and ContextRelevancyEvaluator (4): feedback, and [RESULT] with a
    score from 0."""
    if not 1 <= highest <= 9:
        raise ValueError(f"highest must be from 1 to 9, not {highest}")
    return {
        "type": "grammar",
        "grammar": f'start: REASON "[RESULT] " SCORE\nSCORE: /[0-{highest}]/\n{_REASON}',
    }


def ranking(n_documents: int) -> dict[str, Any]:
    """LLMRerank, n_documents = its choice_batch_size at most: a line for one or more of the documents."""
    line = f"Doc: ({_numbers(n_documents)}), Relevance: (10|[1-9])"
    return {"type": "regex", "pattern": rf"{line}(\n{line}){{0,{n_documents - 1}}}"}


def number(highest: int) -> dict[str, Any]:
    """The tree index's retrievers and others that look for a number: one from 1 to `highest`, alone."""
    return {"type": "choice", "choices": [str(i) for i in range(1, highest + 1)]}


def selection(n_choices: int, *, most: int = 1) -> dict[str, Any]:
    """LLMSingleSelector and LLMMultiSelector (most > 1): a JSON list of choices and reasons. BitNetSelector
    needs no format."""
    entry = {
        "type": "object",
        "properties": {
            "choice": {"enum": list(range(1, n_choices + 1))},
            "reason": {"type": "string", "maxLength": MAX_REASON},
        },
        "required": ["choice", "reason"],
    }
    schema = {"type": "array", "items": entry, "minItems": 1, "maxItems": min(most, n_choices)}
    return {"type": "json_schema", "schema": schema}


def sub_questions(tool_names: Sequence[str], *, most: int = 5) -> dict[str, Any]:
    """LLMQuestionGenerator, for SubQuestionQueryEngine: questions for these tools only."""
    entry = {
        "type": "object",
        "properties": {
            "sub_question": {"type": "string", "minLength": 1, "maxLength": MAX_REASON},
            "tool_name": {"enum": list(tool_names)},
        },
        "required": ["sub_question", "tool_name"],
    }
    (key,) = SubQuestionList.model_fields
    items = {"type": "array", "items": entry, "minItems": 1, "maxItems": most}
    return {
        "type": "json_schema",
        "schema": {"type": "object", "properties": {key: items}, "required": [key]},
    }


def _numbers(highest: int) -> str:
    return "|".join(str(i) for i in range(1, highest + 1))
