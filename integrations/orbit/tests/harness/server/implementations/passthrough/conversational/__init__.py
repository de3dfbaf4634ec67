from __future__ import annotations

from typing import Any


class ConversationalImplementation:
    def __init__(self, config: dict[str, Any], domain_adapter: Any = None, **kwargs: Any) -> None:
        self.config = config

    async def initialize(self) -> None: ...

    async def close(self) -> None: ...
