from __future__ import annotations

import importlib
from typing import Any

from ai_services.base import ServiceType
from ai_services.factory import AIServiceFactory


def register_inference_services(config: dict[str, Any] | None = None) -> None:
    """Register what `implementations.inference` has under the provider's class name, if it is enabled."""
    block = (config or {}).get("inference", {}).get("bitnet", {})
    if config and str(block.get("enabled", False)).lower() == "false":
        return
    module = importlib.import_module("ai_services.implementations.inference")
    AIServiceFactory.register_service(ServiceType.INFERENCE, "bitnet", module.BitNetInferenceService)
