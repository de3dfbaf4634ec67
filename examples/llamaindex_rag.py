"""Questions about documents, answered offline: LlamaIndex on the bundled model, for vectors and answers.

    pip install bitnet-cpp llama-index-llms-bitnet llama-index-embeddings-bitnet
    python examples/llamaindex_rag.py

Nothing is downloaded, and one loaded model does both. What is asked stands in the documents only: towns and
people are made up.
"""

from __future__ import annotations

import tempfile

from llama_index.core import Document, Settings, StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.node_parser import SentenceSplitter
from llama_index.embeddings.bitnet import BitNetEmbedding
from llama_index.llms.bitnet import BitNet

DOCUMENTS = [
    "Mira lives in Tolbek.",
    "The color of the boat is blue.",
    "The capital of Zorland is Pelim.",
    "The password is blue lamp.",
]
QUESTIONS = ["Where does Mira live?", "What is the color of the boat?", "What is the capital of Zorland?"]


def main() -> dict[str, str]:
    # The bundled model's context is short: a short answer leaves more of it for LlamaIndex's long prompts.
    llm = BitNet(max_tokens=64)
    embed_model = BitNetEmbedding()
    # Before anything is cut or counted: everything then counts as the model does.
    Settings.tokenizer = llm.tokenizer

    index = VectorStoreIndex.from_documents(
        [Document(text=text) for text in DOCUMENTS],
        embed_model=embed_model,
        transformations=[SentenceSplitter(chunk_size=128, chunk_overlap=16)],
    )
    with tempfile.TemporaryDirectory() as folder:  # an index can be stored, and read again
        index.storage_context.persist(folder)
        index = load_index_from_storage(
            StorageContext.from_defaults(persist_dir=folder), embed_model=embed_model
        )

    engine = index.as_query_engine(llm=llm, similarity_top_k=1, streaming=True)
    answers = {}
    for question in QUESTIONS:
        print(f"> {question}")
        answers[question] = ""
        for piece in engine.query(question).response_gen:
            print(piece, end="", flush=True)
            answers[question] += piece
        print()
    return answers


if __name__ == "__main__":
    main()
