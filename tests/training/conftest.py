"""Fixtures of the training tests."""

from collections.abc import Iterator

import pytest
import torch._dynamo
from torch._dynamo.utils import counters


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """Nothing compiled before the test, and nothing after it."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
    counters.clear()
