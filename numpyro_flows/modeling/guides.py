"""A flow as a NumPyro autoguide."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, PRNGKeyArray
from numpyro.infer.initialization import init_to_uniform

from numpyro_flows import flows
from numpyro_flows._jax import eval_context
from numpyro_flows.arguments import described, require_callable, require_key, require_model, require_numbers
from numpyro_flows.bijections import AbstractBijection, Affine, Chain, TriangularAffine
from numpyro_flows.bijections.compose import trained_and_fixed
from numpyro_flows.modeling._numpyro import VectorGuide
from numpyro_flows.modeling.angles import AnglesTransform
from numpyro_flows.modeling.columns import is_angle
from numpyro_flows.modeling.distributions import FlowDistribution
from numpyro_flows.modeling.model_run import model_run

_MAX_FULL_DIM = 256  # above this, the scale is diagonal
_MARGINAL_DRAWS = 10_000  # for `median` and `quantiles`


class AutoFlow(VectorGuide):
    """A normalizing flow over all continuous latent sites: `x = loc + L f(u)`, `u ~ N(0, I)`, on unconstrained sites.

    It works like NumPyro's own continuous guides: with `SVI`, `Predictive`, `NeuTraReparam`, one-dimensional models,
    plates and subsampled data. The outermost layer is a trainable affine map, lower-triangular up to 256 dimensions and
    diagonal above. So the guide starts as `N(init_loc_fn's values, init_scale^2)`, and the flow has to model only the
    rest.

    Angles (`constraints.circular`, for example of `VonMises`) have no seam: `x` is any real number, and the site is its
    angle in `[-pi, pi)`. A draw is weighted by its share of the copies `x + 2 pi k`, which is one half at a half turn
    from `loc`. So the ELBO is a bound, as for other sites, and can be exact for any density on the circle.

    Args:
        model: a NumPyro model with at least one continuous latent site; marginalise or block discrete sites.
        flow: a recipe `(key, dim) -> bijection`: one of `numpyro_flows.flows`, of FlowJAX, or your own.
        prefix: prefix for the names of the parameters and of the auxiliary site.
        init_loc_fn: NumPyro initialisation strategy; the guide starts at its values.
        init_scale: standard deviation at the start, on the unconstrained scale.

    Raises:
        TypeError: if `model` or `flow` cannot be called.
        ValueError: if `init_scale` is not positive, or `flow` gives a bijection of the wrong shape.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist  # doctest: +SLOW
        >>> from numpyro.infer import SVI
        >>> from numpyro_flows import AutoFlow, PathELBO
        >>> def model():
        ...     numpyro.sample("x", dist.Normal(3.0, 1.0).expand([2]).to_event(1))
        >>> svi = SVI(model, AutoFlow(model), numpyro.optim.Adam(1e-2), PathELBO(num_particles=16))
        >>> result = svi.run(jax.random.key(0), 100, progress_bar=False)
        >>> result.losses.shape
        (100,)
    """

    def __init__(
        self,
        model: Callable,
        flow: Callable[[PRNGKeyArray, int], AbstractBijection] = flows.realnvp,
        *,
        prefix: str = "auto",
        init_loc_fn: Callable = init_to_uniform,
        init_scale: float = 0.1,
    ):
        require_model(model)
        if not callable(flow):
            raise TypeError(f"flow expected a recipe, for example flows.realnvp, got {described(flow)}")
        require_callable("init_to_uniform", init_loc_fn=init_loc_fn)
        require_numbers("(0, inf)", init_scale=init_scale)
        self.flow = flow
        self.init_scale = init_scale
        super().__init__(model, prefix=prefix, init_loc_fn=init_loc_fn)

    @property
    def param_name(self) -> str:
        """Name of the only parameter site: the list of all trained arrays, as `parameters` gives it."""
        return f"{self.prefix}_flow$params"

    @staticmethod
    def parameters(bijection: AbstractBijection) -> list[Array]:
        """All trained arrays of a bijection, as a list, because all of NumPyro (`SteinVI` too) accepts lists."""
        return jax.tree.leaves(trained_and_fixed(bijection)[0])

    def make_bijection(self, rng_key: PRNGKeyArray, loc: ArrayLike, scale: ArrayLike) -> Chain:
        """The untrained map from `N(0, I)` to the unconstrained sites: the flow, then `loc + scale x`.

        Args:
            rng_key: random key of the flow's networks.
            loc: location of shape `(dim,)`.
            scale: a positive number or vector, or a lower-triangular matrix `(dim, dim)`.
        """
        require_key(rng_key)
        loc = jnp.asarray(loc)
        flow = self.flow(rng_key, loc.size)
        if tuple(flow.shape) != loc.shape or flow.cond_shape is not None:
            raise ValueError(
                f"flow expected to give an unconditional bijection of shape {loc.shape}, "
                f"got shape {flow.shape} and cond_shape {flow.cond_shape}"
            )
        return Chain([flow, affine(loc, jnp.asarray(scale, loc.dtype))])

    def initial_scale(self, dim: int) -> Array:
        """`init_scale` as a matrix, or in many dimensions a vector, for `make_bijection`."""
        scale = jnp.full(dim, self.init_scale)
        return jnp.diag(scale) if dim <= _MAX_FULL_DIM else scale

    def set_up(self, bijection: AbstractBijection, *args: Any, **kwargs: Any) -> None:
        """Run the model once, as a first call would, and use the structure of a `bijection` trained elsewhere."""
        with model_run(), numpyro.handlers.seed(rng_seed=0):
            self.run_model(*args, **kwargs)
        self._untrained = bijection

    def get_base_dist(self) -> dist.Distribution:
        return dist.Normal(jnp.zeros(self.latent_dim), 1.0).to_event(1)

    def get_posterior(self, params: dict[str, Any]) -> FlowDistribution:
        """The guide's distribution of the unconstrained latent vector, of event shape `(latent_dim,)`."""
        with model_run(), numpyro.handlers.substitute(data=params):
            return self.current_posterior()

    def median(self, params: dict[str, Any]) -> dict[str, Array]:
        """Median of every site's marginal, by 10,000 draws of a fixed key, because there is no closed form."""
        return {name: value[0] for name, value in self.quantiles(params, [0.5]).items()}

    def quantiles(self, params: dict[str, Any], quantiles: Sequence[float]) -> dict[str, Array]:
        """Quantiles of every site's marginal, `(len(quantiles), *site)`, from 10,000 draws with a fixed key.

        Raises:
            ValueError: if a quantile is outside [0, 1].
        """
        if not all(0 <= q <= 1 for q in quantiles):
            raise ValueError(f"quantiles expected values in [0, 1], got {quantiles}")
        draws = self.sample_posterior(jax.random.key(0), params, sample_shape=(_MARGINAL_DRAWS,))
        return {name: jnp.quantile(value, jnp.asarray(quantiles), axis=0) for name, value in draws.items()}

    def after_setup(self, init: Array) -> None:
        # Concrete even if SVI.init is traced: integer arrays of a flow (masks, orders) outlive that trace.
        with eval_context():
            loc = jnp.zeros(self.latent_dim, jnp.result_type(float))
            angles = [index for support, index in self.supports().values() if is_angle(support)]
            self._angles = tuple(np.concatenate([*angles, np.zeros(0, int)]).tolist())
            self._untrained = self.make_bijection(jax.random.key(0), loc, self.initial_scale(self.latent_dim))
        self._init = AnglesTransform(self._angles, loc).inverse(init) if self._angles else init

    def _init_params(self, rng_key: PRNGKeyArray) -> list[Array]:
        scale = self.initial_scale(self.latent_dim)
        return self.parameters(self.make_bijection(rng_key, self._init, scale))

    def current_posterior(self) -> FlowDistribution:
        params: Any = numpyro.param(self.param_name, self._init_params)
        untrained, static = trained_and_fixed(self._untrained)
        trained = jax.tree.unflatten(jax.tree.structure(untrained), params)
        bijection = eqx.combine(trained, static)
        on_line = AnglesTransform(self._angles, centre_of(bijection)) if self._angles else None
        return FlowDistribution(bijection, self.get_base_dist(), constrain=on_line)


def affine(loc: Array | np.ndarray, scale: Array | np.ndarray) -> AbstractBijection:
    """`loc + scale x` for a lower-triangular matrix `scale` or a vector."""
    return TriangularAffine(loc, scale) if scale.ndim == 2 else Affine(loc, scale)


def centre_of(bijection: AbstractBijection) -> Array:
    """The image of zero under the last map of a bijection: the `loc` of an `AutoFlow`."""
    while isinstance(bijection, Chain):
        bijection = bijection.bijections[-1]
    return bijection.transform_and_log_det(jnp.zeros(bijection.shape))[0]
