"""Puts the services in the place of Orbit's bundled provider `bitnet`."""

from __future__ import annotations

import functools
import importlib
import logging
from typing import Any

from orbit_bitnet._orbit import AIServiceFactory, ServiceType
from orbit_bitnet.embedding import BitNetEmbeddingService
from orbit_bitnet.inference import BitNetService

PROVIDER = "bitnet"


def register() -> None:
    """Make Orbit use BitNetService and BitNetEmbeddingService for the provider `bitnet`, from now on.

    May be called at any time, and repeated. Services that Orbit has made before stay what they are.
    """
    replace_bundled()
    for kind, service in (
        (ServiceType.INFERENCE, BitNetService),
        (ServiceType.EMBEDDING, BitNetEmbeddingService),
    ):
        if AIServiceFactory.get_service_class(kind, PROVIDER) is not service:
            AIServiceFactory.unregister_service(kind, PROVIDER)  # or the factory warns of overwriting it
            AIServiceFactory.register_service(kind, PROVIDER, service)
            AIServiceFactory.clear_cache(kind, PROVIDER)


def replace_bundled() -> None:
    """For before Orbit registers its providers: it will find BitNetService under the name of its own, if
    `inference.bitnet.enabled` says that it shall."""
    inference: Any = importlib.import_module("ai_services.implementations.inference")
    inference.BitNetInferenceService = BitNetService
    _offer_embeddings()
    log = logging.getLogger("bitnet")
    if log.level == logging.ERROR:  # Orbit's doing: but its warnings tell what was repaired in a model file
        log.setLevel(logging.NOTSET)


def _offer_embeddings() -> None:
    """Orbit makes embedding services from a fixed list of names, which has no bitnet."""
    factory: Any = importlib.import_module("embeddings.base").EmbeddingServiceFactory
    original = factory._create_new_instance
    if getattr(original, "offers_bitnet", False):
        return

    @functools.wraps(original)
    def create(provider_name: str, config: dict[str, Any]) -> Any:
        if provider_name == PROVIDER:
            return BitNetEmbeddingService(config)
        return original(provider_name, config)

    create.offers_bitnet = True  # type: ignore[attr-defined]
    factory._create_new_instance = staticmethod(create)
