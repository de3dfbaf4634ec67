"""Answers as objects: what with_structured_output asks a model for, and how its answer is read."""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from typing import Any, Literal

from langchain_core.messages import AIMessage
from langchain_core.output_parsers import (
    BaseOutputParser,
    JsonOutputKeyToolsParser,
    JsonOutputParser,
    PydanticOutputParser,
    PydanticToolsParser,
)
from langchain_core.runnables import Runnable, RunnableLambda, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import BaseModel

Method = Literal["json_schema", "function_calling", "json_mode"]
METHODS = ("json_schema", "function_calling", "json_mode")
SchemaLike = Mapping[str, Any] | type


def response_format(schema: SchemaLike | None) -> dict[str, Any]:
    """What holds the answer to `schema`; None = to any JSON object."""
    if schema is None:
        return {"type": "json_object"}
    name, json_schema = _named_schema(schema)
    return {"type": "json_schema", "json_schema": {"name": name, "schema": json_schema}}


def _named_schema(schema: SchemaLike) -> tuple[str, dict[str, Any]]:
    if isinstance(schema, Mapping):
        if isinstance(inner := schema.get("json_schema"), Mapping):  # a whole response_format
            return _named_schema(inner)
        if isinstance(inner := schema.get("schema"), Mapping):  # as OpenAI wraps it
            return str(schema.get("name", "answer")), dict(inner)
        if "name" not in schema and schema.get("type") != "function":  # JSON schema, with a title or without
            return str(schema.get("title", "answer")), dict(schema)
    elif is_basemodel_subclass(schema):
        # Their own words: convert_to_json_schema writes definitions out, which recursive models do not bear.
        model: Any = schema
        written = model.model_json_schema() if issubclass(schema, BaseModel) else model.schema()
        return schema.__name__, written
    # It takes every form of schema there is, and declares some of them.
    converted = convert_to_json_schema(schema)  # type: ignore[arg-type]  # takes more than it says
    return str(converted["title"]), converted


def text_parser(schema: SchemaLike | None) -> Runnable[AIMessage, Any]:
    """Reads an answer whose text is JSON: pydantic classes become objects, everything else dicts."""
    if isinstance(schema, type) and is_basemodel_subclass(schema):
        return _at_the_end(PydanticOutputParser(pydantic_object=schema))
    return JsonOutputParser()


def tool_parser(schema: SchemaLike, tool_name: str) -> Runnable[AIMessage, Any]:
    """Reads an answer that is a call of the tool `schema` became."""
    if isinstance(schema, type) and is_basemodel_subclass(schema):
        return _at_the_end(PydanticToolsParser(tools=[schema], first_tool_only=True))
    return JsonOutputKeyToolsParser(key_name=tool_name, first_tool_only=True)


def _at_the_end(parser: BaseOutputParser[Any]) -> Runnable[AIMessage, Any]:
    """`parser`, asked once for the whole answer.

    In a stream it would make objects of what there is so far, and half a string passes validation.
    """

    def parse(message: AIMessage) -> Any:
        return parser.invoke(message)

    return RunnableLambda(parse).with_config(run_name=type(parser).__name__)


def with_raw(
    model: Runnable[Any, AIMessage], parser: Runnable[AIMessage, Any]
) -> Runnable[Any, dict[str, Any] | BaseModel]:
    """{"raw": the message, "parsed": what it says or None, "parsing_error": what was wrong or None}."""
    read: Runnable[Any, Any] = itemgetter("raw") | parser
    parsed = RunnablePassthrough.assign(parsed=read, parsing_error=lambda _: None)
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=model) | parsed.with_fallbacks([failed], exception_key="parsing_error")
