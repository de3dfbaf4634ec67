"""The calls of Orbit's guide to BitNet, on the bundled model, without its server.

pip install bitnet-cpp orbit-bitnet aiohttp pillow
PYTHONPATH=orbit/server python examples/orbit_service.py        (orbit: a checkout of Orbit)
"""

from __future__ import annotations

import asyncio

from ai_services.base import ServiceType
from ai_services.factory import AIServiceFactory
from orbit_bitnet import register

CONFIG = {"inference": {"bitnet": {"mode": "direct", "temperature": 0, "max_tokens": 48}}}


async def main() -> None:
    register()
    service = AIServiceFactory.create_service(ServiceType.INFERENCE, "bitnet", CONFIG)
    print("initialize:", await service.initialize())
    print("verify_connection:", await service.verify_connection())
    print("generate:", await service.generate("What is the capital of France?"))
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "What is the capital of Japan?"},
    ]
    print("messages:", await service.generate("", messages=messages))
    print("stream:", end=" ")
    async for chunk in service.generate_stream("Tell me a story about a fox."):
        print(chunk, end="", flush=True)
    print()
    await service.close()
    print("initialized:", service.initialized)


if __name__ == "__main__":
    asyncio.run(main())
