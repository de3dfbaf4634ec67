"""/tokenize, /detokenize and /apply-template: what a model's tokenizer and chat template make of things.

The names are those of llama.cpp's server; vLLM's `prompt` and `messages` are understood too.
"""

from __future__ import annotations

import asyncio
from typing import Any

from bitnet.server import parameters
from bitnet.server.errors import invalid
from bitnet.server.exchange import Exchange
from bitnet.server.messages import chat_messages, tool_choice


async def tokenize(exchange: Exchange) -> None:
    """{"content": TEXT} -> {"tokens": [...], "count": N}. With messages: the count only, of the prompt that a
    chat makes of them."""
    body = await exchange.read_json()
    options = parameters.options_of(body, parameters.TOKENIZE)
    given = [name for name in ("content", "prompt", "messages") if body.get(name) is not None]
    if len(given) != 1:
        raise invalid("exactly one of content, prompt and messages is needed")
    add_special = parameters.flag(body, "add_special", True)
    parse_special = parameters.flag(body, "parse_special")
    served = exchange.service.models.find(body.get("model"))
    exchange.model = served.name
    answer: dict[str, Any] = {"model": served.name}
    async with served.use() as model:
        if given == ["messages"]:
            options = _template_options(exchange, body, options)
            messages = chat_messages(exchange, body["messages"])
            answer["count"] = await asyncio.to_thread(lambda: model.count_tokens(messages, **options))
        else:
            text = body[given[0]]
            if not isinstance(text, str):
                raise invalid(f"{given[0]} must be a string", given[0])
            answer["tokens"] = await asyncio.to_thread(
                lambda: model.tokenize(text, add_special=add_special, parse_special=parse_special)
            )
            answer["count"] = len(answer["tokens"])
        answer["max_model_len"] = model.info.n_ctx
    await exchange.send_json(answer)


async def detokenize(exchange: Exchange) -> None:
    """{"tokens": [...]} -> {"content": TEXT}."""
    body = await exchange.read_json()
    parameters.options_of(body, parameters.DETOKENIZE)
    tokens = body.get("tokens")
    skip_special = parameters.flag(body, "skip_special", True)
    served = exchange.service.models.find(body.get("model"))
    exchange.model = served.name
    async with served.use() as model:
        vocab_size = model.info.vocab_size
        if not isinstance(tokens, list) or not all(
            type(token) is int and 0 <= token < vocab_size for token in tokens
        ):
            raise invalid(f"tokens must be a list of token ids from 0 to {vocab_size - 1}", "tokens")
        text = await asyncio.to_thread(lambda: model.detokenize(tokens, skip_special=skip_special))
    await exchange.send_json({"model": served.name, "content": text})


async def apply_template(exchange: Exchange) -> None:
    """{"messages": [...]} -> {"prompt": TEXT}, what a chat would compute, special tokens written out."""
    body = await exchange.read_json()
    options = _template_options(exchange, body, parameters.options_of(body, parameters.APPLY_TEMPLATE))
    if body.get("messages") is None:
        raise invalid("messages is missing", "messages")
    messages = chat_messages(exchange, body["messages"])
    served = exchange.service.models.find(body.get("model"))
    exchange.model = served.name
    async with served.use() as model:
        text = await asyncio.to_thread(lambda: model.render(messages, **options))
    await exchange.send_json({"model": served.name, "prompt": text})


def _template_options(exchange: Exchange, body: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    choice = tool_choice(body.get("tool_choice"), has_tools=bool(options.get("tools")))
    if choice is not None:
        options["tool_choice"] = choice
    exchange.service.limits.apply(options)
    return options
