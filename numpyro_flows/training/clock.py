"""Wall time of a fit, by stage."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Wall time by stage: the usual ones, and others where they ran."""

    def __init__(self) -> None:
        stages = ("tracing", "compilation", "gaussian", "flow", "certificate")
        self.seconds: dict[str, float] = dict.fromkeys(stages, 0.0)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
