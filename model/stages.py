"""One log line a stage of the road, with its seconds."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Log `name` and the seconds that the block took, once it has ended without an error."""
    start = time.perf_counter()
    yield
    logger.info("%-12s %7.2f s", name, time.perf_counter() - start)
