"""Why a training ended."""

from enum import Enum
from typing import NamedTuple


class Reason(Enum):
    """What ended a training, in one word; an `Ending` has the sentence."""

    GOOD_ENOUGH = "good enough"
    BUDGET = "all steps taken"
    LITTLE_GAIN = "little gain"
    NO_IMPROVEMENT = "no improvement"
    NOT_FINITE = "not finite"
    INTERRUPTED = "interrupted"
    ERROR = "error"


class Ending(NamedTuple):
    """A reason, and its text."""

    reason: Reason
    why: str


INTERRUPTED = Ending(Reason.INTERRUPTED, "interrupted")


def failed(error: Exception) -> Ending:
    """What an error of the device ends."""
    return Ending(Reason.ERROR, f"stopped by an error: {error}")
