"""BitNetSelector: which of several choices is meant, limited to those that there are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.base.base_selector import BaseSelector, SelectorResult, SingleSelection
from llama_index.core.prompts import BasePromptTemplate, PromptTemplate
from llama_index.core.prompts.mixin import PromptDictType
from llama_index.core.schema import QueryBundle
from llama_index.core.selectors.prompts import (
    DEFAULT_MULTI_SELECT_PROMPT_TMPL,
    DEFAULT_SINGLE_SELECT_PROMPT_TMPL,
)
from llama_index.core.tools.types import ToolMetadata
from llama_index.llms.bitnet.base import BitNet


class BitNetSelector(BaseSelector):
    """For RouterQueryEngine(selector=BitNetSelector(llm)) and other routers.

    LlamaIndex's own selectors take whatever number a model says, and a 0 silently means the last choice. Here
    the model can only say numbers of choices, in a few tokens; its reasons are not asked for.
    """

    def __init__(self, llm: BitNet, *, multi: bool = False, max_outputs: int | None = None) -> None:
        """multi: one or more choices instead of one; max_outputs of them at most."""
        if max_outputs is not None and max_outputs < 1:
            raise ValueError(f"max_outputs must be at least 1, not {max_outputs}")
        self._llm = llm
        self._multi = multi
        self._max_outputs = max_outputs
        template = DEFAULT_MULTI_SELECT_PROMPT_TMPL if multi else DEFAULT_SINGLE_SELECT_PROMPT_TMPL
        self._prompt: BasePromptTemplate = PromptTemplate(template)

    def _get_prompts(self) -> PromptDictType:
        return {"prompt": self._prompt}

    def _update_prompts(self, prompts: PromptDictType) -> None:
        if "prompt" in prompts:
            self._prompt = prompts["prompt"]

    def _select(self, choices: Sequence[ToolMetadata], query: QueryBundle) -> SelectorResult:
        most = self._most(choices)
        text = self._answering(len(choices), most).predict(
            self._prompt, **self._prompt_args(choices, query, most)
        )
        return _result(text, choices)

    async def _aselect(self, choices: Sequence[ToolMetadata], query: QueryBundle) -> SelectorResult:
        most = self._most(choices)
        llm = self._answering(len(choices), most)
        return _result(await llm.apredict(self._prompt, **self._prompt_args(choices, query, most)), choices)

    def _most(self, choices: Sequence[ToolMetadata]) -> int:
        if not choices:
            raise ValueError("there is nothing to select from")
        if not self._multi:
            return 1
        return min(self._max_outputs or len(choices), len(choices))

    def _answering(self, n_choices: int, most: int) -> BitNet:
        numbers = "|".join(str(i) for i in range(1, n_choices + 1))
        pattern = rf"({numbers})(, ({numbers})){{0,{most - 1}}}"
        return self._llm.with_options(response_format={"type": "regex", "pattern": pattern})

    def _prompt_args(self, choices: Sequence[ToolMetadata], query: QueryBundle, most: int) -> dict[str, Any]:
        args = {
            "num_choices": len(choices),
            "context_list": "\n\n".join(
                f"({i + 1}) {' '.join(choice.description.splitlines())}" for i, choice in enumerate(choices)
            ),
            "query_str": query.query_str,
        }
        return {**args, "max_outputs": most} if self._multi else args


def _result(text: str, choices: Sequence[ToolMetadata]) -> SelectorResult:
    """Its indices count from 0, unlike what the model says."""
    numbers = dict.fromkeys(int(number) for number in text.split(","))  # each once, in this order
    return SelectorResult(
        selections=[
            SingleSelection(index=number - 1, reason=f"the model chose ({number})") for number in numbers
        ]
    )
