"""An agent that calls a Python function, offline: LlamaIndex's FunctionAgent on the bundled model.

pip install bitnet-cpp llama-index-llms-bitnet
python examples/llamaindex_agent.py
"""

from __future__ import annotations

import asyncio

from llama_index.core.agent.workflow import AgentStream, FunctionAgent, ToolCallResult
from llama_index.llms.bitnet import BitNet


def get_weather(city: str) -> str:
    """Get the weather of a city."""
    return f"It is sunny in {city}."


async def ask(question: str) -> tuple[list[str], str]:
    """What the function returned to the agent's calls, and the answer."""
    agent = FunctionAgent(tools=[get_weather], llm=BitNet(max_tokens=64))
    handler = agent.run(question, max_iterations=4)
    results = []
    async for event in handler.stream_events():
        if isinstance(event, ToolCallResult):
            results.append(str(event.tool_output.content))
            print(f"{event.tool_name}({event.tool_kwargs}) -> {event.tool_output.content}")
        elif isinstance(event, AgentStream):
            print(event.delta, end="", flush=True)
    answer = str(await handler)
    print()
    return results, answer


def main() -> tuple[list[str], str]:
    return asyncio.run(ask("What is the weather in Oslo?"))


if __name__ == "__main__":
    main()
