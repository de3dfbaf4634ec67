"""How much the `bitnet` logger tells: `verbose` in a configuration, BITNET_VERBOSE in the environment."""

from __future__ import annotations

import functools
import logging
import os

logger = logging.getLogger("bitnet")


def verbose_wanted() -> bool:
    """Whether BITNET_VERBOSE asks for everything: set, and not to 0, false, no or off."""
    return os.environ.get("BITNET_VERBOSE", "").strip().lower() not in ("", "0", "false", "no", "off")


def be_verbose() -> None:
    """Log everything: to the handlers of the program, or to stderr if it has none."""
    logger.setLevel(logging.DEBUG)
    silent = all(isinstance(handler, logging.NullHandler) for handler in logger.handlers)
    if silent and not logging.getLogger().handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("bitnet: %(levelname)s: %(message)s"))
        logger.addHandler(handler)


@functools.cache
def obey_environment() -> None:
    """Called when the first model is made, because importing this package does no work."""
    if verbose_wanted():
        be_verbose()
