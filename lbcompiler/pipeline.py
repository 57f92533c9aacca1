"""Runs passes in order: the IR is verified after each and dumped if asked; a failure names its
pass.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

from lbcompiler.errors import LbcError
from lbcompiler.ir.dump import Dump, no_dump
from lbcompiler.ir.model import Model
from lbcompiler.ir.verify import verify

Progress = Callable[[str, int, int], None]  # (stage, done, total)


def silent(_stage: str, _done: int, _total: int) -> None:
    """The progress of someone who did not ask."""


class Pass(Protocol):
    """A frozen dataclass, its options as fields: it may expect a valid model and leaves one."""

    name: ClassVar[str]

    def __call__(self, model: Model) -> Model: ...


class PassError(Exception):
    """A pass broke the IR or itself: a fault of ours, not of the user."""


def run(
    passes: Sequence[Pass],
    model: Model,
    dump: Dump = no_dump,
) -> Model:
    """`model` through every pass. Raises LbcError for the user's faults, PassError for ours."""
    for index, step in enumerate(passes):
        try:
            model = step(model)
            verify(model)
        except LbcError:
            raise
        except Exception as error:
            before = ", ".join(done.name for done in passes[:index]) or "nothing"
            raise PassError(f"pass {step.name} failed (after {before}): {error}") from error
        dump(step.name, model.module)
    return model


class StageClock:
    """Runs the stages, tells progress, and keeps the seconds that each took."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.seconds: dict[str, float] = {}

    def __call__(self, stage: str, work: Callable[[], Any]) -> Any:
        self.progress(stage, 0, 1)
        start = time.perf_counter()
        result = work()
        self.seconds[stage] = round(time.perf_counter() - start, 3)
        self.progress(stage, 1, 1)
        return result
