"""Independence Metropolis-Hastings with a flow as the proposal."""

from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, Scalar
from numpyro.util import is_prng_key

from numpyro_flows.continuous.training_form import without_errors
from numpyro_flows.inference.flow_kernel import AbstractFlowKernel, Keys, require_no_arguments
from numpyro_flows.inference.posterior import FlowPosterior
from numpyro_flows.modeling.scoring import standard_normal_log_prob
from numpyro_flows.modeling.sites import Sites
from numpyro_flows.precision import full_precision


class FlowMHState(NamedTuple):
    """One state of a chain of `FlowMH`; with vectorized chains each field has a leading axis of them.

    Attributes:
        i: number of steps, warm-up included.
        z: unconstrained values of the latent sites.
        log_weight: `log p(x, data) - log q(x)` of this state.
        accept_prob: probability that the last proposal was accepted with.
        mean_accept_prob: its mean over the warm-up, and afterwards over the sampling so far.
        rng_key: random key of the next step.
    """

    i: Int[Array, "*chains"]
    z: dict[str, Array]
    log_weight: Float[Array, "*chains"]
    accept_prob: Float[Array, "*chains"]
    mean_accept_prob: Float[Array, "*chains"]
    rng_key: Keys


class FlowMH(AbstractFlowKernel):
    """Metropolis-Hastings with draws `x'` of the flow `q` as proposals, accepted with `min(1, w(x') / w(x))`.

    The weights are `w(x) = p(x, data) / q(x)`. A proposal does not depend on the current state, so a step needs no
    gradient, and a chain needs no tuning. A good flow gives nearly independent draws: a perfect one has all its
    proposals accepted. If the flow's tails are too thin, a chain can stay for long at a state with a large weight. The
    chains do not find a mode that the flow misses. Use it in NumPyro's `MCMC`, whose `run` then takes a key and no
    model arguments.

    `get_samples()` returns all latent and deterministic sites. `run(rng_key, extra_fields=("accept_prob",))` also
    collects the acceptance probabilities; other fields are `log_weight`, `mean_accept_prob`, and `z`, the latent sites'
    unconstrained values. Each chain starts at a draw from the flow. The argument `init_params` of `MCMC.run` gives
    other points: a dict like `z`, with a leading axis of chains if there are several. A density that is NaN or infinite
    counts as zero.

    Args:
        posterior: a fit, with its model.

    Raises:
        TypeError: if `posterior` is not a `FlowPosterior`.
        ValueError: if the posterior was loaded without its model, `run` gets model arguments, or `init_params` lack a
            latent site or have another shape.

    Source: Tierney 1994, Annals of Statistics 22, 1701-1728; Albergo, Kanwar, Shanahan 2019, arXiv 1904.12072, for
    flows.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist  # doctest: +SLOW
        >>> from numpyro.infer import MCMC
        >>> from numpyro_flows import FlowMH, FlowVI
        >>> def model(y):
        ...     numpyro.sample("y", dist.Normal(numpyro.sample("mu", dist.Normal(0, 10)), 1), obs=y)
        >>> posterior = FlowVI(model, progress_bar=False).run(jax.random.key(0), jax.numpy.array([1.0, 2.0, 3.0]))
        >>> mcmc = MCMC(FlowMH(posterior), num_warmup=10, num_samples=200, progress_bar=False)
        >>> mcmc.run(jax.random.key(1), extra_fields=("accept_prob",))
        >>> mcmc.get_samples()["mu"].shape, bool(mcmc.get_extra_fields()["accept_prob"].mean() > 0.9)
        ((200,), True)
    """

    _num_warmup = 0

    def __init__(self, posterior: FlowPosterior):
        super().__init__(posterior)
        self._packing = Sites(self._target.shapes)

    def init(
        self,
        rng_key: Keys,
        num_warmup: int,
        init_params: dict[str, Array] | None,
        model_args: Any,
        model_kwargs: Any,
    ) -> FlowMHState:
        require_no_arguments(model_args, model_kwargs)
        self._num_warmup = num_warmup
        if init_params is None:
            return self._started(rng_key, None)
        x = self._packing.pack(init_params)
        chains = () if is_prng_key(rng_key) else (len(rng_key),)
        if x.shape[:-1] != chains:
            expected = {name: (*chains, *shape) for name, shape in self._packing.shapes.items()}
            raise ValueError(f"init_params expected sites of shapes {expected}, got the leading axes {x.shape[:-1]}")
        return self._started(rng_key, x)

    def sample(self, state: FlowMHState, model_args: Any, model_kwargs: Any) -> FlowMHState:
        return (self._step if state.i.ndim == 0 else jax.vmap(self._step))(state)

    def get_diagnostics_str(self, state: FlowMHState) -> Any:
        return f"acc. prob={state.mean_accept_prob:.2f}"

    def sites(self, z: dict[str, Array]) -> dict[str, Array]:
        return self._target.constrain(self._packing.pack(z))

    def __reduce__(self) -> tuple[Callable, tuple]:
        return FlowMH, (self._posterior,)

    @cached_property
    def _started(self) -> Callable[[Keys, Array | None], FlowMHState]:
        """The first state for each key, at the given points or at draws."""

        def start(rng_key: PRNGKeyArray, x: Array | None) -> FlowMHState:
            rng_key, draw_key = jax.random.split(rng_key)
            x, log_weight = self._propose(draw_key) if x is None else (x, self._log_weight(x))
            zero = jnp.zeros_like(log_weight)
            return FlowMHState(jnp.array(0), self._packing.unpack(x), log_weight, zero, zero, rng_key)

        return jax.jit(lambda key, x: (start if is_prng_key(key) else jax.vmap(start))(key, x))

    def _step(self, state: FlowMHState) -> FlowMHState:
        rng_key, draw_key, accept_key = jax.random.split(state.rng_key, 3)
        x, log_weight = self._propose(draw_key)
        accept_prob = jnp.exp(jnp.minimum(log_weight - state.log_weight, 0))
        accept_prob = jnp.where(state.log_weight == -jnp.inf, 1, accept_prob)  # a start where the density is zero
        accepted = jax.random.uniform(accept_key) < accept_prob
        z, log_weight = jax.tree.map(
            lambda new, old: jnp.where(accepted, new, old),
            (self._packing.unpack(x), log_weight),
            (state.z, state.log_weight),
        )
        i = state.i + 1
        n = jnp.where(state.i < self._num_warmup, i, i - self._num_warmup)
        mean_accept_prob = state.mean_accept_prob + (accept_prob - state.mean_accept_prob) / n
        return FlowMHState(i, z, log_weight, accept_prob, mean_accept_prob, rng_key)

    def _propose(self, rng_key: PRNGKeyArray) -> tuple[Float[Array, " dim"], Scalar]:
        """A draw of the flow and its log weight."""
        u = jax.random.normal(rng_key, (self._target.dim,))
        x, log_density = self.transport(u)
        return x, _finite(log_density - standard_normal_log_prob(u))

    @full_precision()
    def _log_weight(self, x: Float[Array, " dim"]) -> Scalar:
        u, log_det = without_errors(self._posterior.bijection).inverse_and_log_det(x)
        return _finite(self._target.log_density(x) - standard_normal_log_prob(u) - log_det)


def _finite(log_weight: Scalar) -> Scalar:
    """Values with minus infinity in place of those that are not finite."""
    return jnp.where(jnp.isfinite(log_weight), log_weight, -jnp.inf)
