"""What is in the wheels, and that nothing is looked for elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import llama_index
import pytest

PACKAGES = Path(__file__).parents[2]
SOURCES = {
    "llama-index-llms-bitnet": PACKAGES / "llama-index-llms" / "llama_index",
    "llama-index-embeddings-bitnet": PACKAGES / "llama-index-embeddings" / "llama_index",
}


@pytest.mark.parametrize("name", SOURCES)
def test_namespaces_stay_namespaces(name: str) -> None:
    """A stray __init__.py in one of them hides llama_index.core."""
    sources = SOURCES[name]
    assert not list(sources.glob("__init__.py")) + list(sources.glob("*/__init__.py"))
    (package,) = (path.parent for path in sources.glob("*/*/__init__.py"))
    assert (package / "py.typed").is_file()
    installed = {str(file) for file in metadata.files(name) or ()}
    files = {file for file in installed if file.startswith("llama_index/") and "__pycache__" not in file}
    if files:  # a wheel, not an editable install
        assert files == {f"llama_index/{p.relative_to(sources)}" for p in package.iterdir() if p.is_file()}
    assert llama_index.__file__ is None


@pytest.mark.parametrize("name", SOURCES)
def test_dependencies(name: str) -> None:
    needed = sorted(requirement.split(">")[0].split("<")[0] for requirement in metadata.requires(name) or ())
    assert needed == ["bitnet-cpp", "llama-index-core"]


OFFLINE = """
import socket
def refuse(*args, **kwargs):
    raise AssertionError(f"the network: {args}")
socket.getaddrinfo = socket.create_connection = refuse
from llama_index.core import Document, Settings, VectorStoreIndex
from llama_index.core.node_parser import TokenTextSplitter
from llama_index.embeddings.bitnet import BitNetEmbedding
from llama_index.llms.bitnet import BitNet
Settings.llm = BitNet(max_tokens=32)
Settings.tokenizer = Settings.llm.tokenizer
Settings.embed_model = BitNetEmbedding()
Settings.node_parser = TokenTextSplitter(chunk_size=60, chunk_overlap=0)
index = VectorStoreIndex.from_documents([Document(text="Mira lives in Tolbek. " * 20)])
print(index.as_query_engine(similarity_top_k=1).query("Where does Mira live?"))
import sys
print("tiktoken" in sys.modules, "nltk" in sys.modules)
"""


def test_nothing_is_downloaded_where_nothing_is_cached(tmp_path: Path) -> None:
    """Not even the tokenizer data that llama_index.core brings along is needed."""
    environment = {
        **os.environ,
        "TIKTOKEN_CACHE_DIR": str(tmp_path),
        "NLTK_DATA": str(tmp_path),
        "HOME": str(tmp_path),
    }
    output = subprocess.run(
        [sys.executable, "-W", "error", "-c", OFFLINE],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert output.returncode == 0, output.stderr
    *answer, modules = output.stdout.strip().splitlines()
    assert "Tolbek" in "\n".join(answer)
    assert modules == "False False"
