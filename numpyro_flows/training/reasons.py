"""Why a training ended."""

from enum import StrEnum
from typing import NamedTuple


class Reason(StrEnum):
    """What ended a training, in one word; `why` of a result has the sentence."""

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
        """Whether it is one that a user should hear of."""
        return self.reason in (Reason.NOT_FINITE, Reason.ERROR)


INTERRUPTED = Ending(Reason.INTERRUPTED, "interrupted")


def failed(error: Exception) -> Ending:
    """What an error of the device, or of a callback, ends."""
    return Ending(Reason.ERROR, f"stopped by an error: {error}")
