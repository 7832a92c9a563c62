from __future__ import annotations

from collections.abc import Iterator

import pytest

from experiments.virtual_training import dense_block
from node_agent.experts import architectures


@pytest.fixture(autouse=True)
def no_architecture_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Experiments register dense blocks of their own, which other tests would find."""
    monkeypatch.setattr(architectures, "_registry", dict(architectures._registry))
    yield
    dense_block.cache_clear()
