"""NUTS in the coordinates of a flow's base."""

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Scalar
from numpyro.infer import NUTS
from numpyro.infer.hmc import HMCState
from numpyro.infer.util import ParamInfo
from numpyro.util import is_prng_key

from numpyro_flows.inference.flow_kernel import AbstractFlowKernel, Keys, require_no_arguments
from numpyro_flows.inference.posterior import FlowPosterior

_STARTS = 10  # candidates for a chain's start: the first with a finite potential and gradient is used
_OURS = {
    "model": "the posterior has its own",
    "potential_fn": "the posterior determines it",
    "init_strategy": "give mcmc.run(rng_key, init_params=...)",
}


class FlowNUTS(AbstractFlowKernel):
    """NUTS on `log p(T(u), data) + log |det dT/du|`, the posterior in the flow's base coordinates `u`.

    `T` is the fit's map from `N(0, I)` to the unconstrained latent vector. If the flow fits well, NUTS meets a nearly
    standard normal density. If it fits less well, NUTS corrects its error, as far as the chains can move: they rarely
    reach a mode that the flow misses. Use it in NumPyro's `MCMC`, whose `run` then takes a key and no model arguments.

    `get_samples()` returns all latent and deterministic sites, as for `NUTS(model)`. The state and its fields are those
    of NumPyro's `NUTS`. Its `z` is the base point `u`, so `print_summary` lists deterministic sites too.
    Each chain starts at a draw from `N(0, I)`. The argument `init_params` of `MCMC.run` gives other base points, of
    shape `(dim,)` for one chain and `(num_chains, dim)` for several.

    Args:
        posterior: a fit, with its model. The flow should be smooth: splines have kinks in their gradients.
        nuts_options: options of `numpyro.infer.NUTS`, such as `target_accept_prob`, `max_tree_depth`, `dense_mass`.

    Raises:
        TypeError: if `posterior` is not a `FlowPosterior`, or NumPyro's `NUTS` has no such option.
        ValueError: if the posterior was loaded without its model, the options include `model`, `potential_fn` or
            `init_strategy`, `run` gets model arguments, or `init_params` have another shape.

    Source: Hoffman, Sountsov, Dillon, Langmore, Tran, Vasudevan 2019, arXiv 1903.03704.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist  # doctest: +SLOW
        >>> from numpyro.infer import MCMC
        >>> from numpyro_flows import FlowNUTS, FlowVI
        >>> def model(y):
        ...     numpyro.sample("y", dist.Normal(numpyro.sample("mu", dist.Normal(0, 10)), 1), obs=y)
        >>> posterior = FlowVI(model, progress_bar=False).run(jax.random.key(0), jax.numpy.array([1.0, 2.0, 3.0]))
        >>> kernel = FlowNUTS(posterior, target_accept_prob=0.9)
        >>> mcmc = MCMC(
        ...     kernel, num_warmup=100, num_samples=50, num_chains=2, chain_method="vectorized", progress_bar=False
        ... )
        >>> mcmc.run(jax.random.key(1))
        >>> mcmc.get_samples()["mu"].shape, int(mcmc.get_extra_fields()["diverging"].sum())
        ((100,), 0)
    """

    def __init__(self, posterior: FlowPosterior, **nuts_options: Any):
        super().__init__(posterior)
        for name in nuts_options.keys() & _OURS.keys():
            raise ValueError(f"nuts_options expected options that change the sampler, got {name}: {_OURS[name]}")
        self._options = nuts_options
        self._nuts = self._new_nuts()

    @property
    def default_fields(self) -> Any:
        return self._nuts.default_fields

    def get_diagnostics_str(self, state: HMCState) -> Any:
        return self._nuts.get_diagnostics_str(state)

    def init(
        self,
        rng_key: Keys,
        num_warmup: int,
        init_params: Float[Array, "*chains dim"] | None,
        model_args: Any,
        model_kwargs: Any,
    ) -> HMCState:
        require_no_arguments(model_args, model_kwargs)
        start_key, nuts_key = _split(rng_key)
        if init_params is None:
            start = self._started(start_key)
        else:
            chains = () if is_prng_key(rng_key) else (len(rng_key),)
            expected = (*chains, self._target.dim)
            if jnp.shape(init_params) != expected:
                raise ValueError(f"init_params expected base points of shape {expected}, got {jnp.shape(init_params)}")
            start = self._started_at(jnp.asarray(init_params))
        # a new one for each run: a second `init` of the same NUTS maps its step over the chains a second time
        self._nuts = self._new_nuts()
        return self._nuts.init(nuts_key, num_warmup, start)

    def sample(self, state: HMCState, model_args: Any, model_kwargs: Any) -> HMCState:
        return self._nuts.sample(state, (), {})

    def sites(self, z: Float[Array, " dim"]) -> dict[str, Array]:
        return self._target.constrain(self.transport(z)[0])

    def __reduce__(self) -> tuple[Callable, tuple]:
        return partial(FlowNUTS, **self._options), (self._posterior,)

    def _new_nuts(self) -> NUTS:
        return NUTS(potential_fn=self._potential, **self._options)

    def _potential(self, u: Float[Array, " dim"]) -> Scalar:
        return -self.transport(u)[1]

    @cached_property
    def _started_at(self) -> Callable[[Array], ParamInfo]:
        """Base points `(*chains, dim)` with their potentials and gradients, which NUTS would find op by op."""

        def start(u: Array) -> ParamInfo:
            return ParamInfo(u, *jax.value_and_grad(self._potential)(u))

        return jax.jit(lambda u: (start if u.ndim == 1 else jax.vmap(start))(u))

    @cached_property
    def _started(self) -> Callable[[Keys], ParamInfo]:
        """The same of a draw for each key."""

        def start(rng_key: PRNGKeyArray) -> ParamInfo:
            starts = self._started_at(jax.random.normal(rng_key, (_STARTS, self._target.dim)))
            finite = jnp.isfinite(starts.potential_energy) & jnp.isfinite(starts.z_grad).all(-1)
            return jax.tree.map(lambda leaf: leaf[jnp.argmax(finite)], starts)

        return jax.jit(lambda key: (start if is_prng_key(key) else jax.vmap(start))(key))


def _split(rng_key: Keys) -> tuple[Keys, Keys]:
    """Two keys of one; of a batch of keys, two batches."""
    if is_prng_key(rng_key):
        first, second = jax.random.split(rng_key)
        return first, second
    keys = jax.vmap(jax.random.split)(rng_key)
    return keys[:, 0], keys[:, 1]
