"""The only file that uses NumPyro's private API, except names in saved files; tested by `tests/test_private_api.py`."""

import copy
import warnings
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import numpyro.primitives as primitives
from jaxtyping import Array, ArrayLike, Float
from numpyro.distributions import constraints
from numpyro.distributions.batch_util import promote_batch_shape
from numpyro.distributions.transforms import Transform
from numpyro.infer.autoguide import AutoContinuous

DISTRIBUTION_STATE = ("_batch_shape", "_event_shape", "_validate_args")
"""All attributes that the constructor of `Distribution` sets."""


class VectorGuide(AutoContinuous):
    """`AutoContinuous`, whose hooks call `after_setup` and `current_posterior`."""

    @abstractmethod
    def after_setup(self, init: Float[Array, " dim"]) -> None:
        """Called after the first run of the model, with the latent vector of `init_loc_fn`."""

    @abstractmethod
    def current_posterior(self) -> dist.Distribution:
        """The distribution of the latent vector, within a handler that gives its parameters."""

    def run_model(self, *args: Any, **kwargs: Any) -> None:
        """Run the model once, as a first call of the guide would."""
        self._setup_prototype(*args, **kwargs)

    def supports(self) -> dict[str, tuple[Any, np.ndarray]]:
        """The support of every latent site, and the numbers of its coordinates in the vector."""
        numbers: Any = self._unpack_latent(jnp.arange(self.latent_dim))
        sites = self.prototype_trace or {}
        return {name: (sites[name]["fn"].support, np.ravel(index)) for name, index in numbers.items()}

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        with warnings.catch_warnings():  # NumPyro's own guides have a seam there
            warnings.filterwarnings("ignore", "Continuous inference poorly handles circular")
            super()._setup_prototype(*args, **kwargs)
        self.after_setup(self._init_latent)

    def _get_posterior(self) -> dist.Distribution:
        return self.current_posterior()

    def _unpack_and_constrain(self, latent_sample: Float[Array, "*sample dim"], params: dict[str, Any]) -> Any:
        # NumPyro's own maps draw by draw; all draws at once are faster by an order of magnitude
        constrain = super()._unpack_and_constrain
        for _ in latent_sample.shape[:-1]:
            constrain = jax.vmap(constrain, in_axes=(0, None))
        return jax.jit(constrain)(latent_sample, params)


class TwoWayTransform(Transform):
    """A transform whose inverse is its method `inverse`."""

    @abstractmethod
    def inverse(self, y: Array) -> Array:
        """The point that the transform maps to `y`."""

    def _inverse(self, y: Array) -> Array:  # pyright: ignore
        return self.inverse(y)


class OnLine(type(constraints.circular)):  # pyright: ignore
    """`constraints.circular` whose real coordinate is any copy of the angle on the line, in place of a logit."""


def current_posterior(guide: AutoContinuous) -> Any:
    """The distribution of a guide's latent vector, within a handler that gives its parameters."""
    return guide._get_posterior()


def latent_name(guide: AutoContinuous) -> str:
    """The name of the latent vector's site."""
    return f"_{guide.prefix}_latent"


class OpenPlate(NamedTuple):
    """A plate around the running model: its dimension, its whole size, and the indices of its rows."""

    dim: int
    size: int
    rows: Array


def open_plates() -> list[OpenPlate]:
    """All open plates, the outermost first."""
    plates = [handler for handler in primitives._PYRO_STACK if isinstance(handler, primitives.plate)]
    return [OpenPlate(plate.dim, plate.size, plate._indices) for plate in plates]


def mask_of(distribution: dist.MaskedDistribution) -> bool | Array:
    """The mask of a masked distribution."""
    return distribution._mask


def is_in_scan(site: dict[str, Any]) -> bool:
    """Whether a site belongs to NumPyro's `scan`, and has its axes in front."""
    return site.get("_control_flow_done", False)


def validates(distribution: dist.Distribution) -> bool | None:
    """Whether a distribution validates its arguments."""
    return distribution._validate_args


def warn_outside_support(distribution: dist.Distribution, value: ArrayLike) -> None:
    """Warn where `value` is not in the support."""
    distribution._validate_sample(value)


def register_in_scan(cls: type[dist.Distribution], batch_shape: Callable[[Any], tuple[int, ...]]) -> None:
    """Make `batch_shape(distribution)` the batch shape of distributions that come out of NumPyro's `scan`."""

    def promoted(distribution: Any) -> Any:
        distribution = copy.copy(distribution)
        distribution._batch_shape = batch_shape(distribution)
        return distribution

    promote_batch_shape.register(cls, promoted)  # pyright: ignore[reportArgumentType, reportCallIssue]
