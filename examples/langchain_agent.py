"""A LangChain agent on the bundled model: it calls a tool, and it answers in a form that is enforced.

    pip install bitnet-cpp langchain-bitnet langchain
    python examples/langchain_agent.py

The form of calls and of objects is always right, whatever the model is; what stands in them is as good as the
model, and the bundled one is tiny.
"""

from langchain.agents import create_agent
from langchain_bitnet import ChatBitNet
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from pydantic import BaseModel


@tool
def get_weather(city: str) -> str:
    """Get the weather of a city."""
    return f"It is sunny in {city}."


class Person(BaseModel):
    """A person."""

    name: str
    age: int


def main() -> None:
    chat = ChatBitNet(temperature=0, max_tokens=100)

    agent = create_agent(chat, [get_weather])
    for message in agent.invoke({"messages": [HumanMessage("What is the weather in Paris?")]})["messages"]:
        for call in getattr(message, "tool_calls", []):
            print(f"call: {call['name']}({call['args']})")
        if message.content:
            print(f"{message.type}: {message.content}")

    person = chat.with_structured_output(Person, method="function_calling").invoke("Anna is 31 years old.")
    print("object:", repr(person))


if __name__ == "__main__":
    main()
