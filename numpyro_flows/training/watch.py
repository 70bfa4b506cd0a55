"""How a user looks at a fit from outside: a progress bar, a callback, a file to go on from."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from numpyro_flows.arguments import require_callable, require_instance


class Progress(NamedTuple):
    """What a callback is told after each round of training.

    step: steps taken in all.
    losses: of the round's steps.
    figures: of the best by now, by name: "ess", "khat" and "elbo" of `FlowVI`, "nll" of the others.
    """

    step: int
    losses: Float[np.ndarray, "*restarts steps"]
    figures: dict[str, float]


Callback = Callable[[Progress], Any]
"""Called after each round; where it returns True, the fit ends and returns what is best by then."""


class Watch(NamedTuple):
    """What the arguments `progress_bar`, `callback` and `checkpoint` of the fits are."""

    progress_bar: bool = False
    callback: Callback | None = None
    checkpoint: str | os.PathLike | None = None

    def checked(self) -> "Watch":
        """Itself.

        Raises:
            TypeError: if an argument is of another type.
            ValueError: if the checkpoint cannot be a file.
        """
        if self.callback is not None:
            require_callable("callback=print", callback=self.callback)
        if self.checkpoint is not None:
            require_instance((str, os.PathLike), 'checkpoint="fit.ckpt"', checkpoint=self.checkpoint)
            path = os.path.abspath(self.checkpoint)
            if os.path.isdir(path) or not os.path.isdir(os.path.dirname(path)):
                raise ValueError(f"checkpoint expected the path of a file in a folder that is there, got {path!r}")
        return self
