"""Latent ODE: irregular series as observations of a path that follows a learned differential equation."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, Scalar

from numpyro_flows import flows
from numpyro_flows.arguments import require_counts, require_key, require_numbers
from numpyro_flows.bijections import AbstractBijection
from numpyro_flows.continuous.solving import ODESolver
from numpyro_flows.flows import Recipe
from numpyro_flows.latent_ode.networks import Encoder, LatentField
from numpyro_flows.latent_ode.programs import PARAM_NAME, guide_of_series, model_of_series
from numpyro_flows.latent_ode.series import (
    Series,
    Times,
    checked_scales,
    checked_window,
    observe_at,
    observe_covariates,
    observe_series,
)
from numpyro_flows.latent_ode.solving import prediction_solver, solve_paths, training_solver
from numpyro_flows.modeling.distributions import FlowDistribution
from numpyro_flows.networks import MLP
from numpyro_flows.precision import full_precision
from numpyro_flows.training.seeds import named_key

FLOW: Recipe = partial(flows.nsf_coupling, num_layers=2, hidden=(32,))
"""Of the latent state: small, because series are few."""


class LatentODE(eqx.Module):
    """`z0 ~ flow(N(0, I) | c)`, `dz/dt = f(z, c)` from `z(start) = z0`, `x_i ~ N(decoder(z(t_i)), noise^2)`.

    `c` are covariates: known constants of a series, for example a dose. They are optional.

    `model` and `guide` are NumPyro's: `SVI(latent_ode.model, latent_ode.guide, optimizer, Trace_ELBO())`, and
    `latent_ode.with_params(params)` is then the trained one; or `fit_latent_ode` does it all. The guide is
    `q(z0 | series, c)`, Gaussian, by a recurrent encoder. The evidence lower bound trains the flow by maximum
    likelihood on draws of the guide. So the aggregate posterior, seen through the flow's inverse (`to_base`), is nearly
    `N(0, I)`. The field does not depend on the time: a path may be followed beyond the window.

    The model solves in a few steps of one size, and everything else to a tolerance; `solver_error` compares them.
    The same key starts encoder, field and decoder with the same weights, with a flow or covariates or without.

    Args:
        rng_key: random key, of either style.
        obs_dim: length of an observation.
        latent_dim: length of `z`.
        cov_dim: number of covariates of a series; None: none.
        flow: recipe of the map from the base to `z0`, called with `cond_dim=cov_dim` where there are covariates;
            None: `z0 ~ N(0, I)`.
        width: of the encoder's state and of the hidden layers of field and decoder.
        window: of time: its start is the time of `z0`, and its length the unit of time.
        center: location of each coordinate of an observation.
        spread: standard deviation of each coordinate. The networks see observations standardised by center and spread,
            and the noise is the same share of each spread.
        cov_center: location of each covariate.
        cov_spread: standard deviation of each covariate; field, encoder and flow see standardised covariates.
        dropout: largest share of a series' observed times that the guide does not see; a share is drawn in each step.
            Without it the encoder overfits (spirals: held-out error 1.58 noise standard deviations, with it 1.16).
        num_steps: solver steps of the model in the window.

    Raises:
        ValueError: for numbers out of range, an empty window, or a flow of another shape.

    Source: Rubanova, Chen, Duvenaud 2019, arXiv 1907.03907; Chen, Rubanova, Bettencourt, Duvenaud 2018, arXiv
        1806.07366.

    Example:
        >>> import jax, numpy as np, numpyro  # doctest: +SLOW
        >>> from numpyro.infer import SVI, Trace_ELBO
        >>> from numpyro_flows import LatentODE
        >>> times = np.sort(np.random.default_rng(0).uniform(size=(20, 5)))
        >>> values = np.sin(times)[..., None]
        >>> latent_ode = LatentODE(jax.random.key(0), 1, latent_dim=2, flow=None, width=8)
        >>> svi = SVI(latent_ode.model, latent_ode.guide, numpyro.optim.Adam(1e-2), Trace_ELBO())
        >>> result = svi.run(jax.random.key(1), 10, times, values, progress_bar=False)
        >>> trained = latent_ode.with_params(result.params)
        >>> trained.predict(times, values, at=np.linspace(0, 2, 7)).shape
        (20, 7, 1)
    """

    encoder: Encoder
    field: LatentField
    decoder: MLP
    flow: AbstractBijection | None
    log_noise: Scalar
    training: ODESolver
    ode: ODESolver
    dropout: float
    window: tuple[float, float] = eqx.field(static=True)
    center: tuple[float, ...] = eqx.field(static=True)
    spread: tuple[float, ...] = eqx.field(static=True)
    cov_center: tuple[float, ...] = eqx.field(static=True)
    cov_spread: tuple[float, ...] = eqx.field(static=True)
    latent_dim: int = eqx.field(static=True)
    cov_dim: int | None = eqx.field(static=True)

    def __init__(
        self,
        rng_key: PRNGKeyArray,
        obs_dim: int,
        *,
        latent_dim: int = 4,
        cov_dim: int | None = None,
        flow: Recipe | None = FLOW,
        width: int = 32,
        window: tuple[float, float] = (0.0, 1.0),
        center: Sequence[float] | None = None,
        spread: Sequence[float] | None = None,
        cov_center: Sequence[float] | None = None,
        cov_spread: Sequence[float] | None = None,
        dropout: float = 0.5,
        num_steps: int = 16,
    ):
        require_key(rng_key)
        require_counts(obs_dim=obs_dim, latent_dim=latent_dim, width=width, num_steps=num_steps)
        require_numbers("[0, 1)", dropout=dropout)
        if cov_dim is not None:
            require_counts(cov_dim=cov_dim)
        self.window, self.dropout = checked_window(window), float(dropout)
        self.latent_dim, self.cov_dim = latent_dim, cov_dim
        self.center, self.spread = checked_scales("", center, spread, obs_dim)
        num_covariates = cov_dim or 0
        self.cov_center, self.cov_spread = checked_scales("cov_", cov_center, cov_spread, num_covariates)
        self.encoder = Encoder(named_key(rng_key, "encoder"), obs_dim, latent_dim, width, num_covariates)
        self.field = LatentField(named_key(rng_key, "field"), latent_dim, width, num_covariates)
        self.decoder = MLP(named_key(rng_key, "decoder"), latent_dim, obs_dim, (width,))
        condition = {} if cov_dim is None else {"cond_dim": cov_dim}
        self.flow = None if flow is None else flow(named_key(rng_key, "flow"), latent_dim, **condition)
        shapes = (latent_dim,), None if cov_dim is None else (cov_dim,)
        if self.flow is not None and (tuple(self.flow.shape), self.flow.cond_shape) != shapes:
            raise ValueError(
                f"flow expected to give a bijection of shape {shapes[0]} and cond_shape {shapes[1]}, got shape "
                f"{self.flow.shape} and cond_shape {self.flow.cond_shape}"
            )
        # One for all coordinates, as large as they are: with one each, one coordinate was learned and the others were
        # taken for noise for 1,000 steps; from a small one on, paths fitted the window and were wrong beyond it.
        self.log_noise = jnp.zeros(())
        self.training, self.ode = training_solver(num_steps), prediction_solver()

    @property
    def noise(self) -> Float[Array, " obs_dim"]:
        """The standard deviation of an observation around the path, in the observations' own units."""
        return jnp.exp(self.log_noise) * jnp.asarray(self.spread)

    @property
    def prior(self) -> dist.Distribution:
        """The distribution of `z0`; that of a flow with covariates is `prior_given(covariates)`."""
        if self.flow is None:
            return dist.Normal(jnp.zeros(self.latent_dim), 1.0).to_event(1)
        return FlowDistribution(self.flow)

    def prior_given(self, covariates: ArrayLike | None, num: int) -> dist.Distribution:
        """The distribution of `z0` of `num` series with these covariates, `(num, cov_dim)` or None."""
        known = self._known(covariates, num)
        if self.flow is None or self.cov_dim is None:
            return self.prior
        return FlowDistribution(self.flow, condition=known)

    def model(
        self,
        times: ArrayLike,
        values: ArrayLike,
        mask: ArrayLike | None = None,
        covariates: ArrayLike | None = None,
        *,
        batch_size: int | None = None,
    ) -> None:
        """NumPyro model of series: sites `z0` and `values` in a plate `series`, of `batch_size` random ones if given.

        Args:
            times: sorted along a series, `(num, length)`.
            values: `(num, length, obs_dim)`.
            mask: false where there is no value: of whole times, `(num, length)`, or of each feature,
                `(num, length, obs_dim)`, for example `np.isfinite(values)`; None: all are there. What masked places
                hold changes nothing. A time counts where any feature is there.
            covariates: known constants of each series, `(num, cov_dim)`; None without `cov_dim`.
            batch_size: number of series of a step; None: all.

        Raises:
            TypeError: where these are not numbers, or the mask is not of booleans.
            ValueError: for wrong shapes, times that are not sorted or before the window, values or covariates that are
                not finite, covariates that are missing, and series without a value. Where SVI's step is compiled by the
                caller, only shapes can be checked.
        """
        model_of_series(self, self.observe(times, values, mask, covariates), batch_size)

    def guide(
        self,
        times: ArrayLike,
        values: ArrayLike,
        mask: ArrayLike | None = None,
        covariates: ArrayLike | None = None,
        *,
        batch_size: int | None = None,
    ) -> None:
        """NumPyro guide of `model`, with its arguments: `z0 ~ q(z0 | series)`."""
        guide_of_series(self, self.observe(times, values, mask, covariates), batch_size)

    def with_params(self, params: dict[str, Any]) -> "LatentODE":
        """This latent ODE with the parameters that SVI found."""
        return eqx.combine(params[PARAM_NAME], eqx.partition(self, eqx.is_inexact_array)[1])

    def encode(
        self,
        times: ArrayLike,
        values: ArrayLike,
        mask: ArrayLike | None = None,
        covariates: ArrayLike | None = None,
    ) -> dist.Distribution:
        """`q(z0 | series)` of every series: a Gaussian of batch shape `(num,)` and event shape `(latent_dim,)`."""
        return _jitted(LatentODE._posterior, self, self.observe(times, values, mask, covariates))

    def to_base(
        self, z0: Float[ArrayLike, "*batch latent_dim"], covariates: ArrayLike | None = None
    ) -> Float[Array, "*batch latent_dim"]:
        """`z0` in the base of the flow, where the prior is `N(0, I)`; with covariates, `z0` is `(*batch, num, dim)`."""
        z0 = jnp.asarray(z0)
        if self.cov_dim is not None and z0.ndim < 2:
            raise ValueError(f"z0 expected the shape (*batch, num, {self.latent_dim}), got {z0.shape}")
        known = self._known(covariates, z0.shape[-2] if z0.ndim > 1 else 1)
        return z0 if self.flow is None else _jitted(_inverse, self.flow, z0, None if self.cov_dim is None else known)

    def predict(
        self,
        times: ArrayLike,
        values: ArrayLike,
        mask: ArrayLike | None = None,
        covariates: ArrayLike | None = None,
        *,
        at: Times | None = None,
    ) -> Float[Array, "num at obs_dim"]:
        """The path from the mean of `q(z0 | series)`, without noise.

        Args:
            times, values, mask, covariates: of the series, as in `model`.
            at: sorted times `(num, at)`, or `(at,)` for all series, in the window or beyond its end; None: the series'
                own, where a reconstruction is wanted.

        Raises:
            ValueError: as `model`, and for times `at` of a wrong shape, not sorted, or before the window.
            RuntimeError: where the solver fails.
        """
        series = self.observe(times, values, mask, covariates)
        z0 = jnp.asarray(_jitted(LatentODE._posterior, self, series).mean)
        return self.follow(z0, series.times if at is None else at, covariates)

    def sample(
        self, rng_key: PRNGKeyArray, num_samples: int, at: Times, covariates: ArrayLike | None = None
    ) -> Float[Array, "num_samples at obs_dim"]:
        """New series from the prior, without noise, at sorted times; covariates are `(num_samples, cov_dim)`."""
        require_key(rng_key)
        require_counts(num_samples=num_samples)
        prior = self.prior_given(covariates, num_samples)
        return self.follow(prior.sample(rng_key, () if prior.batch_shape else (num_samples,)), at, covariates)

    def follow(self, z0: ArrayLike, at: Times, covariates: ArrayLike | None = None) -> Float[Array, "num at obs_dim"]:
        """What is observed, but for noise, on the paths from `z0` `(num, latent_dim)`; the rest as in `predict`."""
        z0 = jnp.asarray(z0)
        if z0.ndim != 2 or z0.shape[1] != self.latent_dim:
            raise ValueError(f"z0 expected the shape (num, {self.latent_dim}), got {z0.shape}")
        times = jnp.asarray(observe_at(at, len(z0), self.window[0]), z0.dtype)
        return _jitted(LatentODE._follow, self, z0, times, observe_covariates(covariates, len(z0), self.cov_dim))

    def solver_error(
        self,
        times: ArrayLike,
        values: ArrayLike,
        mask: ArrayLike | None = None,
        covariates: ArrayLike | None = None,
    ) -> Float[Array, " num"]:
        """How far the model's solver is from the exact path, at most along each series, over the noise."""
        return _jitted(LatentODE._solver_error, self, self.observe(times, values, mask, covariates))

    def path(
        self,
        z0: Float[Array, "num latent_dim"],
        times: Float[Array, "num at"],
        covariates: ArrayLike | None = None,
        *,
        in_training: bool = False,
    ) -> Float[Array, "num at latent_dim"]:
        """`z` at sorted times, by the model's solver or to the tolerance."""
        ode = self.training if in_training else self.ode
        return solve_paths(ode, self.field, z0, self._from_start(times), self._known(covariates, len(z0)))

    def decode(self, z: Float[Array, "*batch latent_dim"]) -> Float[Array, "*batch obs_dim"]:
        """What is observed at `z`, but for noise."""
        standardised = jnp.vectorize(self.decoder, signature="(n)->(m)")(z)
        return standardised * jnp.asarray(self.spread) + jnp.asarray(self.center)

    def observe(
        self, times: ArrayLike, values: ArrayLike, mask: ArrayLike | None = None, covariates: ArrayLike | None = None
    ) -> Series:
        """The series, checked and filled."""
        obs_dim, start = len(self.center), self.window[0]
        return observe_series(times, values, mask, covariates, obs_dim=obs_dim, cov_dim=self.cov_dim, start=start)

    def _posterior(self, series: Series) -> dist.Distribution:
        values = (jnp.asarray(series.values) - jnp.asarray(self.center)) / jnp.asarray(self.spread)
        known = self._known(series.covariates, len(values))
        loc, scale = jax.vmap(self.encoder)(self._from_start(series.times), values, jnp.asarray(series.mask), known)
        return dist.Normal(loc, scale).to_event(1)

    def _known(self, covariates: ArrayLike | None, num: int) -> Float[Array, "num cov_dim"]:
        """Standardised covariates; without any, each series has a vector of length 0."""
        known = observe_covariates(covariates, num, self.cov_dim)
        if known is None:
            return jnp.zeros((num, 0))
        return (jnp.asarray(known) - jnp.asarray(self.cov_center)) / jnp.asarray(self.cov_spread)

    def _follow(self, z0: Array, times: Array, covariates: Array | None) -> Array:
        return self.decode(self.path(z0, times, covariates))

    def _solver_error(self, series: Series) -> Array:
        z0, times = jnp.asarray(self._posterior(series).mean), jnp.asarray(series.times)
        exact = self._follow(z0, times, series.covariates)
        difference = self.decode(self.path(z0, times, series.covariates, in_training=True)) - exact
        return jnp.abs(difference / self.noise).max((1, 2))

    def _from_start(self, times: ArrayLike) -> Array:
        start, end = self.window
        return (jnp.asarray(times) - start) / (end - start)


def _inverse(flow: AbstractBijection, z0: Array, known: Array | None) -> Array:
    if known is None:
        return jnp.vectorize(lambda z: flow.inverse_and_log_det(z)[0], signature="(n)->(n)")(z0)
    return jnp.vectorize(lambda z, c: flow.inverse_and_log_det(z, c)[0], signature="(n),(c)->(n)")(z0, known)


@eqx.filter_jit
@full_precision()
def _jitted(function: Callable, *args: Any) -> Any:
    return function(*args)
