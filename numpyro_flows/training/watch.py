"""The user's view of a running fit: a progress bar, a callback, and a checkpoint file."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from numpyro_flows.arguments import require_callable, require_instance


class Progress(NamedTuple):
    """The record that a callback gets after each round of training.

    step: total number of steps taken.
    losses: losses of the round's steps.
    figures: figures of the best state so far, by name: "ess", "khat" and "elbo" in `FlowVI`, "nll" in other fits.
    """

    step: int
    losses: Float[np.ndarray, "*restarts steps"]
    figures: dict[str, float]


Callback = Callable[[Progress], Any]
"""Called after each round; if it returns True, the fit ends and returns the best result so far."""


class Watch(NamedTuple):
    """The arguments `progress_bar`, `callback` and `checkpoint` of a fit.

    `check` is called often, and raises a KeyboardInterrupt to end a fit that runs in another thread.
    """

    progress_bar: bool = False
    callback: Callback | None = None
    checkpoint: str | os.PathLike | None = None
    check: Callable[[], None] | None = None

    def checked(self) -> "Watch":
        """The object itself, after its checks.

        Raises:
            TypeError: if an argument has the wrong type.
            ValueError: if the checkpoint cannot be a file.
        """
        if self.callback is not None:
            require_callable("callback=print", callback=self.callback)
        if self.checkpoint is not None:
            require_instance((str, os.PathLike), 'checkpoint="fit.ckpt"', checkpoint=self.checkpoint)
            path = os.path.abspath(self.checkpoint)
            if os.path.isdir(path) or not os.path.isdir(os.path.dirname(path)):
                raise ValueError(f"checkpoint expected the path of a file in an existing folder, got {path!r}")
        return self
