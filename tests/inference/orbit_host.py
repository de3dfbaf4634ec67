"""A host that treats `bitnet` as Orbit's bundled provider was observed to do in direct mode: what it passes
to BitNetInference, on which threads, what it does to the text, and how it closes. It has no code of Orbit.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from typing import Any

LOADING: dict[str, Any] = {
    "quant_type": "i2_s",
    "use_pretuned": True,
    "quant_embd": False,
    "n_ctx": 2048,
    "n_threads": 8,
    "n_batch": 2,
    "n_gpu_layers": 0,
    "main_gpu": 0,
    "low_vram": False,
    "use_mmap": True,
    "use_mlock": False,
    "kernel_params": {},
}
SAMPLING: dict[str, Any] = {"temperature": 0.7, "top_p": 0.9, "top_k": 40, "max_tokens": 1024}


class Host:
    """config: the block `inference: bitnet:` of its YAML."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        self.stop = config.get("stop", [])
        self.model: Any = None

    async def initialize(self) -> None:
        path = self.config["model_path"]
        if not os.path.exists(path):
            raise FileNotFoundError(path)
        keys = {key: self.config.get(key, default) for key, default in LOADING.items()}

        def load() -> Any:
            from bitnet import BitNetInference

            return BitNetInference(model_path=path, **keys, verbose=False)

        self.model = await asyncio.to_thread(load)

    def _arguments(self, prompt: str, options: dict[str, Any]) -> dict[str, Any]:
        messages = options.pop("messages", None) or [{"role": "user", "content": prompt}]
        sampling = {key: options.get(key, self.config.get(key, default)) for key, default in SAMPLING.items()}
        return {"prompt": prompt, "messages": messages, **sampling, "stop": self.stop}

    def clean(self, text: str) -> str:
        """What becomes of a text: stop strings out, cut at "<", spaces collapsed."""
        if not text:
            return text
        for stop in self.stop:
            text = text.replace(stop, "")
        text = text.split("<")[0].strip()
        return " ".join(text.split())

    async def generate(self, prompt: str, **options: Any) -> str:
        arguments = self._arguments(prompt, options)
        response = await asyncio.to_thread(lambda: self.model.generate(**arguments))
        return self.clean(response.get("text", "") if isinstance(response, dict) else str(response))

    async def generate_stream(self, prompt: str, **options: Any) -> AsyncIterator[str]:
        arguments = self._arguments(prompt, options)
        stream = await asyncio.to_thread(lambda: self.model.generate_stream(**arguments))
        for chunk in stream:  # on the event loop
            text = chunk.get("text", "") if chunk and isinstance(chunk, dict) else chunk
            if text and isinstance(text, str) and (text := self.clean(text)):
                yield text

    async def close(self) -> None:
        if self.model and hasattr(self.model, "close"):
            await self.model.close()
        self.model = None
