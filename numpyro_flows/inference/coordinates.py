"""What is known of the coordinates of a posterior's unconstrained vector."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Shaped
from numpyro.distributions.transforms import CorrCholeskyTransform, IdentityTransform, IndependentTransform, biject_to

from numpyro_flows.inference.model_checks import has_sampler
from numpyro_flows.modeling.angles import WrapTransform


class Coordinates(NamedTuple):
    """What is known of the coordinates of the unconstrained vector.

    names: of their sites, with an index where a site has several.
    reach: how far from zero the constraint's arithmetic goes, as `exp(x)` of single precision to 78; infinite for sites
        that are not constrained.
    periodic: whether they are angles on the line, those of `CircularReparam` too: values that differ by `2 pi` are the
        same.
    flat: whether their site has no prior to draw from, as a flat one.
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
        """Of one latent site of a trace."""
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
    """Where a constraint's arithmetic ends: `exp(x)` is zero, or `1 - tanh(x)^2` a rounding error."""
    numbers = jnp.finfo(jnp.result_type(float))
    if isinstance(transform, IdentityTransform | WrapTransform):
        return np.inf
    if isinstance(transform, CorrCholeskyTransform):
        return -0.45 * float(np.log(numbers.eps))
    return -0.9 * float(np.log(numbers.tiny))
