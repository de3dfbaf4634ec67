"""LangChain's chat model on the bundled model: whole answers, streams, batches and conversations.

pip install bitnet-cpp langchain-bitnet
python examples/langchain_chat.py
"""

from langchain_bitnet import ChatBitNet
from langchain_core.messages import HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate


def main() -> None:
    chat = ChatBitNet(temperature=0, max_tokens=60)  # ChatBitNet(model="model.gguf") for a larger one

    message = chat.invoke("What is the capital of Japan?")
    print("invoke:", message.content)
    print("usage:", message.usage_metadata)

    print("stream: ", end="")
    for chunk in chat.stream("Tell me a story about a fox."):
        print(chunk.content, end="", flush=True)
    print()

    prompt = ChatPromptTemplate.from_messages([("human", "What is the capital of {country}?")])
    chain = prompt | chat | StrOutputParser()
    print("batch:", chain.batch([{"country": name} for name in ("France", "Italy", "Spain")]))

    # What was computed for the first question is not computed again for the second.
    conversation = [HumanMessage("My name is Anna.")]
    for text in ("What is my name?", "What is the opposite of hot?"):
        conversation += [chat.invoke(conversation), HumanMessage(text)]
    answer = chat.invoke(conversation)
    print("conversation:", answer.content)
    print("reused:", answer.usage_metadata["input_token_details"]["cache_read"], "tokens of the prompt")


if __name__ == "__main__":
    main()
