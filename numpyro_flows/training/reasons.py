"""Reasons that end a training."""

from enum import StrEnum
from typing import NamedTuple


class Reason(StrEnum):
    """The reason that ended a training, in one word; `why` of a result has the sentence."""

    UNTRAINED = "nothing trained"
    GOOD_ENOUGH = "good enough"
    BUDGET = "all steps taken"
    LITTLE_GAIN = "little gain"
    NO_IMPROVEMENT = "no improvement"
    NOT_FINITE = "not finite"
    CALLBACK = "callback"
    INTERRUPTED = "interrupted"
    ERROR = "error"


class Ending(NamedTuple):
    """A reason, and its text."""

    reason: Reason
    why: str

    @property
    def failed(self) -> bool:
        """Whether a user should be warned of this reason."""
        return self.reason in (Reason.NOT_FINITE, Reason.ERROR)


INTERRUPTED = Ending(Reason.INTERRUPTED, "interrupted")


def failed(error: Exception) -> Ending:
    """The ending caused by an error of the device or of a callback."""
    return Ending(Reason.ERROR, f"stopped by an error: {error}")
