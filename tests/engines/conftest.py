"""What the tests of engines share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The cache directory of a module's own: empty when it begins."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BITNET_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield
