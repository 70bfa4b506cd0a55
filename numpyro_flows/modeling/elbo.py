"""An ELBO for NumPyro's `SVI`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Scalar
from numpyro.handlers import replay, seed, substitute
from numpyro.infer.autoguide import AutoContinuous
from numpyro.infer.elbo import ELBO
from numpyro.infer.util import compute_log_probs
from numpyro.util import check_model_guide_match

from numpyro_flows.arguments import require_counts
from numpyro_flows.modeling._numpyro import current_posterior, latent_name
from numpyro_flows.modeling.angles import AnglesTransform
from numpyro_flows.modeling.distributions import FlowDistribution


class PathELBO(ELBO):
    """The negative ELBO `E_q[log q(x) - log p(x)]` with the path-derivative gradient ("sticking the landing").

    The draws `x = f(u; params)` depend on the parameters, but `log q` is evaluated with parameters held fixed. So the
    score term, whose mean is zero, is dropped. The variance of the gradient vanishes as q approaches p. If q is far
    from p, the variance can be larger: then start with `Trace_ELBO` and switch later. The value is that of
    `Trace_ELBO`.

    Args:
        num_particles: draws for each estimate.
        vectorize_particles: as in NumPyro's `ELBO`.

    Raises:
        TypeError: when used with a guide that is not an `AutoContinuous`.
        ValueError: if `num_particles` is below 1.

    Source: Roeder, Wu, Duvenaud 2017, arXiv 1703.09194.

    Example:
        >>> from numpyro_flows import PathELBO
        >>> PathELBO(num_particles=32).num_particles
        32
    """

    def __init__(self, num_particles: int = 1, vectorize_particles: bool | Callable = True):
        require_counts(num_particles=num_particles)
        super().__init__(num_particles=num_particles, vectorize_particles=vectorize_particles)

    def loss_with_mutable_state(
        self, rng_key: Array, param_map: dict[str, Any], model: Callable, guide: Callable, *args: Any, **kwargs: Any
    ) -> Any:
        if not isinstance(guide, AutoContinuous):
            raise TypeError(f"PathELBO expected an AutoContinuous guide, got {type(guide).__name__}: use Trace_ELBO")
        latent = latent_name(guide)

        def single_particle(rng_key: Array) -> Scalar:
            model_key, guide_key = jax.random.split(rng_key)
            guide_log_probs, guide_trace = compute_log_probs(seed(guide, guide_key), args, kwargs, param_map)
            model_log_probs, model_trace = compute_log_probs(
                replay(seed(model, model_key), guide_trace), args, kwargs, param_map
            )
            check_model_guide_match(model_trace, guide_trace)
            del guide_log_probs[latent]  # what remains is the Jacobian of the constraints
            held = jax.lax.stop_gradient(param_map)
            with substitute(data=held):
                posterior = current_posterior(guide)
            log_q = _log_prob(posterior, guide_trace[latent])
            return log_q + _total(guide_log_probs) - _total(model_log_probs)

        losses = self.vectorize_particles_fn(single_particle, jax.random.split(rng_key, self.num_particles))
        return {"loss": losses.mean(), "mutable_state": None}


def _total(log_probs: dict[str, Array]) -> Scalar:
    return sum((jnp.sum(value) for value in log_probs.values()), start=jnp.zeros(()))


def _log_prob(held: Any, site: dict[str, Any]) -> Scalar:
    """`log q` of a draw with parameters held fixed, except the share of an angle's copies, which is not a density."""
    live = getattr(site["fn"], "constrain", None)
    if not isinstance(live, AnglesTransform):
        return jnp.sum(held.log_prob(site["value"]))
    x = site["intermediates"][-1][0]
    log_q = FlowDistribution(held.bijection, held.base_dist).log_prob(x)
    return jnp.sum(log_q - live.log_abs_det_jacobian(x, site["value"]))
