"""Retrieval with LangChain, all of it on the bundled model: vectors, search, and the answer.

pip install bitnet-cpp langchain-bitnet
python examples/langchain_rag.py
"""

from langchain_bitnet import BitNetEmbeddings, ChatBitNet
from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore

TEXTS = [
    "The capital of Norway is Oslo.",
    "The capital of Italy is Rome.",
    "A fox lives in the wood and eats mice.",
    "Bread is made of flour, water and salt.",
]


def main() -> None:
    store = InMemoryVectorStore.from_texts(TEXTS, BitNetEmbeddings())
    retriever = store.as_retriever(search_kwargs={"k": 1})

    question = "What is the capital of Norway?"
    print("found:", retriever.invoke(question)[0].page_content)

    def join(documents: list[Document]) -> str:
        return "\n".join(document.page_content for document in documents)

    prompt = ChatPromptTemplate.from_template("Context: {context}\n\nQuestion: {question}")
    chat = ChatBitNet(temperature=0, max_tokens=40)
    chain = (
        {"context": retriever | join, "question": RunnablePassthrough()} | prompt | chat | StrOutputParser()
    )
    print("answer:", chain.invoke(question))


if __name__ == "__main__":
    main()
