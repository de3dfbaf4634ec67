"""Answers of a certain form, offline: objects, choices and verdicts from the model bundled with bitnet.

    pip install bitnet-cpp llama-index-llms-bitnet
    python examples/llamaindex_structured.py

The form is certain, whatever the model: tokens that would break it cannot be chosen. What is said in it is up
to the model, and the bundled one is small.
"""

from __future__ import annotations

from typing import Literal

from llama_index.core.evaluation import EvaluationResult, FaithfulnessEvaluator
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import ToolMetadata
from llama_index.llms.bitnet import BitNet, BitNetSelector, formats
from pydantic import BaseModel, Field


class Pet(BaseModel):
    """A pet."""

    name: str = Field(max_length=20)
    kind: Literal["cat", "dog", "bird"]
    age: int = Field(ge=0, le=30)


def main() -> tuple[Pet, int, EvaluationResult]:
    llm = BitNet(max_tokens=64)

    prompt = PromptTemplate("Extract the data as JSON.\nText: {text}")
    pet = llm.structured_predict(Pet, prompt, text="Fipp is a dog. Fipp is 4 years old.")
    print(repr(pet))

    choices = [
        ToolMetadata(name="cooking", description="Useful for questions about cooking."),
        ToolMetadata(name="ships", description="Useful for questions about ships."),
    ]
    # Only numbers of choices that there are can be said.
    selected = BitNetSelector(llm).select(choices, "Tell me about ships.").ind
    print(f"selected: {choices[selected].name}")

    evaluator = FaithfulnessEvaluator(llm=llm.with_options(response_format=formats.YES_NO))
    verdict = evaluator.evaluate(response="The door is green.", contexts=["The color of the door is green."])
    print(f"faithful: {verdict.feedback}")
    return pet, selected, verdict


if __name__ == "__main__":
    main()
