"""A fit as seen by code that describes, stores and exports it: a `FlowPosterior`, without importing it."""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_flows.bijections import AbstractBijection
from numpyro_flows.inference.certificate import Certificate
from numpyro_flows.inference.draws import Chains
from numpyro_flows.inference.settings import FlowVISettings


class Result(Protocol):
    """The attributes of a `FlowPosterior`, which documents them."""

    model: Callable
    has_model: bool
    args: tuple
    kwargs: dict[str, Any]
    bijection: AbstractBijection
    certificate: Certificate
    chains: Chains | None
    log_weights: Float[np.ndarray, " draws"]
    losses: Float[np.ndarray, " steps"]
    seconds: dict[str, float]
    gradient_evaluations: dict[str, int]
    value_evaluations: dict[str, int]
    num_skipped: int
    reason: str
    _guide: Any
    _target: Any
    _settings: FlowVISettings
    _draws: Any
    _constrain_block: Callable

    def sample(self, rng_key: PRNGKeyArray, num_samples: int = ..., *, resample: bool | None = ...) -> Any: ...
    def _constrain(self, x: Float[Array | np.ndarray, "num dim"]) -> dict[str, Array]: ...
