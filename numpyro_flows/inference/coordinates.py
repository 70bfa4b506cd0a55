"""Properties of the coordinates of a posterior's unconstrained vector."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Shaped
from numpyro.distributions.transforms import CorrCholeskyTransform, IdentityTransform, IndependentTransform, biject_to

from numpyro_flows.inference.model_checks import has_sampler
from numpyro_flows.modeling.angles import WrapTransform


class Coordinates(NamedTuple):
    """Properties of the coordinates of the unconstrained vector.

    names: names of their sites, with an index if a site has several coordinates.
    reach: distance from zero at which the constraint's arithmetic ends, such as 78 for `exp(x)` in single precision;
        infinite for unconstrained sites.
    periodic: whether they are angles on the line, including those of `CircularReparam`: values that differ by `2 pi`
        are the same.
    flat: whether their site has no prior to draw from, such as a flat one.
    """

    names: Shaped[np.ndarray, " dim"]
    reach: Float[np.ndarray, " dim"]
    periodic: Bool[np.ndarray, " dim"]
    flat: Bool[np.ndarray, " dim"]

    @classmethod
    def plain(cls, dim: int) -> "Coordinates":
        names = np.array([f"x[{i}]" for i in range(dim)])
        return cls(names, np.full(dim, np.inf), np.zeros(dim, bool), np.zeros(dim, bool))

    @classmethod
    def of(cls, name: str, site: dict[str, Any]) -> "Coordinates":
        """The coordinates of one latent site of a trace."""
        transform, shape = biject_to(site["fn"].support), jnp.shape(site["value"])
        shape = transform.inverse_shape(shape)
        names = [f"{name}{list(index)}" if shape else name for index in np.ndindex(shape)]
        inner = transform.base_transform if isinstance(transform, IndependentTransform) else transform
        flat = not has_sampler(site["fn"])
        periodic = isinstance(inner, WrapTransform) or (name.endswith("unwrapped") and flat)
        return cls(np.array(names), *(np.full(len(names), value) for value in (_reach(inner), periodic, flat)))

    @property
    def constrained(self) -> Bool[np.ndarray, " dim"]:
        return np.isfinite(self.reach)


def _reach(transform: Any) -> float:
    """The point at which a constraint's arithmetic ends: `exp(x)` becomes zero, or `1 - tanh(x)^2` a rounding error."""
    numbers = jnp.finfo(jnp.result_type(float))
    if isinstance(transform, IdentityTransform | WrapTransform):
        return np.inf
    if isinstance(transform, CorrCholeskyTransform):
        return -0.45 * float(np.log(numbers.eps))
    return -0.9 * float(np.log(numbers.tiny))
