"""Latent ODE: irregular series as observations of a path that follows a learned differential equation."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, Scalar

from numpyro_flows import flows
from numpyro_flows.arguments import require_counts, require_key, require_numbers, require_two_times
from numpyro_flows.bijections import AbstractBijection
from numpyro_flows.continuous.solving import ODESolver, adaptive
from numpyro_flows.continuous.training_settings import MAX_TRAINING_STEPS
from numpyro_flows.flows import Recipe
from numpyro_flows.latent_ode.networks import Encoder, LatentField, thinned
from numpyro_flows.latent_ode.series import Series, observe_series
from numpyro_flows.modeling.distributions import FlowDistribution
from numpyro_flows.networks import MLP
from numpyro_flows.precision import full_precision

Times = ArrayLike | Sequence[float]

PARAM_NAME = "latent_ode$params"
FLOW: Recipe = partial(flows.nsf_coupling, num_layers=2, hidden=(32,))
"""Of the latent state: small, because series are few."""
_TOLERANCE = 1e-5  # of the solver that predicts
_MAX_STEPS = 4096


class LatentODE(eqx.Module):
    """`z0 ~ flow(N(0, I))`, `dz/dt = f(z)` from `z(start) = z0`, `x_i ~ N(decoder(z(t_i)), noise^2)`, for many series.

    `model` and `guide` are NumPyro's: `SVI(latent_ode.model, latent_ode.guide, optimizer, Trace_ELBO())`, and
    `latent_ode.with_params(params)` is then the trained one; or `fit_latent_ode` does it all. The guide is
    `q(z0 | series)`, Gaussian, by a recurrent encoder. The evidence lower bound trains the flow by maximum likelihood
    on draws of it, so that the aggregate posterior, seen through the flow's inverse (`to_base`), is nearly `N(0, I)`.
    The field does not depend on the time: a path may be followed beyond the window.

    The model solves in a few steps of one size, and everything else to a tolerance; `solver_error` compares them.

    Args:
        rng_key: random key, of either style.
        obs_dim: length of an observation.
        latent_dim: length of `z`.
        flow: recipe of the map from the base to `z0`; None: `z0 ~ N(0, I)`.
        width: of the encoder's state and of the hidden layers of field and decoder.
        window: of time: its start is the time of `z0`, and its length the unit of time.
        center: of an observation's coordinates, and
        spread: their deviations: networks see observations standardised by them, and noise is the same share of each.
        dropout: most of a series' observations that the guide does not see, a share drawn anew in each step. Without it
            the encoder learns the few series by heart (spirals: held-out error 1.58 noise deviations, with it 1.16).
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
    latent_dim: int = eqx.field(static=True)

    def __init__(
        self,
        rng_key: PRNGKeyArray,
        obs_dim: int,
        *,
        latent_dim: int = 4,
        flow: Recipe | None = FLOW,
        width: int = 32,
        window: tuple[float, float] = (0.0, 1.0),
        center: Sequence[float] | None = None,
        spread: Sequence[float] | None = None,
        dropout: float = 0.5,
        num_steps: int = 16,
    ):
        require_key(rng_key)
        require_counts(obs_dim=obs_dim, latent_dim=latent_dim, width=width, num_steps=num_steps)
        require_numbers("[0, 1)", dropout=dropout)
        self.window, self.latent_dim, self.dropout = checked_window(window), latent_dim, float(dropout)
        self.center = _numbers("center", center, obs_dim, 0.0)
        self.spread = _numbers("spread", spread, obs_dim, 1.0)
        if not min(self.spread) > 0:
            raise ValueError(f"spread expected positive numbers, got {self.spread}")
        keys = jax.random.split(rng_key, 4)
        self.encoder = Encoder(keys[0], obs_dim, latent_dim, width)
        self.field = LatentField(keys[1], latent_dim, width)
        self.decoder = MLP(keys[2], latent_dim, obs_dim, (width,))
        self.flow = None if flow is None else flow(keys[3], latent_dim)
        if self.flow is not None and (tuple(self.flow.shape), self.flow.cond_shape) != ((latent_dim,), None):
            raise ValueError(
                f"flow expected to give an unconditional bijection of shape {(latent_dim,)}, got shape "
                f"{self.flow.shape} and cond_shape {self.flow.cond_shape}"
            )
        # One for all coordinates, as large as they are: with one each, one coordinate was learned and the others were
        # taken for noise for 1,000 steps; from a small one on, paths fitted the window and were wrong beyond it.
        self.log_noise = jnp.zeros(())
        # a training step whose solver fails is NaN, and skipped
        constant, adjoint = diffrax.ConstantStepSize(), diffrax.RecursiveCheckpointAdjoint()
        self.training = ODESolver(
            diffrax.Bosh3(), constant, adjoint, max_steps=MAX_TRAINING_STEPS, num_steps=num_steps, raises=False
        )
        self.ode = ODESolver(diffrax.Tsit5(), adaptive(_TOLERANCE), adjoint, max_steps=_MAX_STEPS)

    @property
    def noise(self) -> Float[Array, " obs_dim"]:
        """The deviation of an observation from the path, in the observations' own units."""
        return jnp.exp(self.log_noise) * jnp.asarray(self.spread)

    @property
    def prior(self) -> dist.Distribution:
        """The distribution of `z0`."""
        if self.flow is None:
            return dist.Normal(jnp.zeros(self.latent_dim), 1.0).to_event(1)
        return FlowDistribution(self.flow)

    def model(
        self, times: ArrayLike, values: ArrayLike, mask: ArrayLike | None = None, *, batch_size: int | None = None
    ) -> None:
        """NumPyro model of series: sites `z0` and `values` in a plate `series`, of `batch_size` random ones if given.

        Args:
            times: sorted along a series, `(num, length)`.
            values: `(num, length, obs_dim)`.
            mask: `(num, length)`, false where there is no value (padding, or a gap); None: all are there.
            batch_size: number of series of a step; None: all.

        Raises:
            TypeError: where these are not numbers, or the mask is not of booleans.
            ValueError: for wrong shapes, times that are not sorted or before the window, values that are not finite,
                and series without a value. Where SVI's step is compiled by the caller, only shapes can be checked.
        """
        series, latent_ode = self.observe(times, values, mask), self._registered()
        with _plate(series, batch_size) as rows:
            times, values, mask = (jnp.asarray(leaf)[rows] for leaf in series)
            z0 = jnp.asarray(numpyro.sample("z0", latent_ode.prior))
            mean = latent_ode.decode(latent_ode.path(z0, times, in_training=True))
            observed = dist.Normal(mean, latent_ode.noise).mask(mask[..., None]).to_event(2)
            numpyro.sample("values", observed, obs=values)

    def guide(
        self, times: ArrayLike, values: ArrayLike, mask: ArrayLike | None = None, *, batch_size: int | None = None
    ) -> None:
        """NumPyro guide of `model`, with its arguments: `z0 ~ q(z0 | series)`."""
        series, latent_ode = self.observe(times, values, mask), self._registered()
        with _plate(series, batch_size) as rows:
            times, values, mask = (jnp.asarray(leaf)[rows] for leaf in series)
            if self.dropout:
                key = numpyro.prng_key()
                mask = mask if key is None else thinned(key, mask, self.dropout)  # None: the guide is not seeded
            numpyro.sample("z0", latent_ode._posterior(Series(times, values, mask)))

    def with_params(self, params: dict[str, Any]) -> "LatentODE":
        """This latent ODE with the parameters that SVI found."""
        return eqx.combine(params[PARAM_NAME], eqx.partition(self, eqx.is_inexact_array)[1])

    def encode(self, times: ArrayLike, values: ArrayLike, mask: ArrayLike | None = None) -> dist.Distribution:
        """`q(z0 | series)` of every series: a Gaussian of batch shape `(num,)` and event shape `(latent_dim,)`."""
        return _jitted(LatentODE._posterior, self, self.observe(times, values, mask))

    def to_base(self, z0: Float[ArrayLike, "*batch latent_dim"]) -> Float[Array, "*batch latent_dim"]:
        """`z0` in the coordinates of the flow's base, where the prior is `N(0, I)`."""
        return jnp.asarray(z0) if self.flow is None else _jitted(_inverse, self.flow, jnp.asarray(z0))

    def predict(
        self, times: ArrayLike, values: ArrayLike, mask: ArrayLike | None = None, *, at: Times | None = None
    ) -> Float[Array, "num at obs_dim"]:
        """The path from the mean of `q(z0 | series)`, without noise.

        Args:
            times, values, mask: of the series, as in `model`.
            at: sorted times `(num, at)`, or `(at,)` for all series, in the window or beyond its end; None: the series'
                own, where a reconstruction is wanted.

        Raises:
            ValueError: as `model`, and for times `at` of a wrong shape, not sorted, or before the window.
            RuntimeError: where the solver fails.
        """
        z0 = jnp.asarray(self.encode(times, values, mask).mean)
        return self.follow(z0, self.observe(times, values, mask).times if at is None else at)

    def sample(self, rng_key: PRNGKeyArray, num_samples: int, at: Times) -> Float[Array, "num_samples at obs_dim"]:
        """New series from the prior, without noise, at sorted times."""
        require_key(rng_key)
        require_counts(num_samples=num_samples)
        return self.follow(self.prior.sample(rng_key, (num_samples,)), at)

    def follow(self, z0: ArrayLike, at: Times) -> Float[Array, "num at obs_dim"]:
        """What is observed, but for noise, on the paths from `z0` `(num, latent_dim)`; `at` as in `predict`."""
        z0, times = jnp.asarray(z0), np.asarray(at)
        if z0.ndim != 2 or z0.shape[1] != self.latent_dim:
            raise ValueError(f"z0 expected the shape (num, {self.latent_dim}), got {z0.shape}")
        if times.ndim == 1:
            times = np.broadcast_to(times, (len(z0), len(times)))
        if times.ndim != 2 or len(times) != len(z0) or times.shape[1] == 0:
            raise ValueError(f"at expected the shape (at,) or ({len(z0)}, at), got {np.shape(at)}")
        if not np.isfinite(times).all() or (np.diff(times) < 0).any() or times.min() < self.window[0]:
            raise ValueError(f"at expected sorted, finite times from {self.window[0]} on, got others")
        return _jitted(LatentODE._follow, self, z0, jnp.asarray(times, z0.dtype))

    def solver_error(self, times: ArrayLike, values: ArrayLike, mask: ArrayLike | None = None) -> Float[Array, " num"]:
        """How far the model's solver is from the exact path, at most along each series, in deviations of the noise."""
        return _jitted(LatentODE._solver_error, self, self.observe(times, values, mask))

    def path(
        self, z0: Float[Array, "num latent_dim"], times: Float[Array, "num at"], *, in_training: bool = False
    ) -> Float[Array, "num at latent_dim"]:
        """`z` at sorted times, by the model's solver or to the tolerance."""
        ode = self.training if in_training else self.ode

        def one(z0: Array, times: Array) -> Array:
            # the whole window at least: steps of one size are then alike for all series
            end: Any = jnp.maximum(times[-1], 1.0)
            return ode(lambda t, z, field: field(z), z0, (0.0, end), self.field, times)[0]

        return jax.vmap(one)(z0, self._from_start(times))

    def decode(self, z: Float[Array, "*batch latent_dim"]) -> Float[Array, "*batch obs_dim"]:
        """What is observed at `z`, but for noise."""
        standardised = jnp.vectorize(self.decoder, signature="(n)->(m)")(z)
        return standardised * jnp.asarray(self.spread) + jnp.asarray(self.center)

    def observe(self, times: ArrayLike, values: ArrayLike, mask: ArrayLike | None = None) -> Series:
        """The series, checked and filled."""
        return observe_series(times, values, mask, obs_dim=len(self.center), start=self.window[0])

    def _posterior(self, series: Series) -> dist.Distribution:
        values = (jnp.asarray(series.values) - jnp.asarray(self.center)) / jnp.asarray(self.spread)
        loc, scale = jax.vmap(self.encoder)(self._from_start(series.times), values, jnp.asarray(series.mask))
        return dist.Normal(loc, scale).to_event(1)

    def _follow(self, z0: Array, times: Array) -> Array:
        return self.decode(self.path(z0, times))

    def _solver_error(self, series: Series) -> Array:
        z0, times = jnp.asarray(self._posterior(series).mean), jnp.asarray(series.times)
        difference = self.decode(self.path(z0, times, in_training=True)) - self._follow(z0, times)
        return jnp.abs(difference / self.noise).max((1, 2))

    def _registered(self) -> "LatentODE":
        """This one, with its arrays as NumPyro has them: in one parameter site, for model and guide alike."""
        params, static = eqx.partition(self, eqx.is_inexact_array)
        registered: Any = numpyro.param(PARAM_NAME, lambda rng_key: params)
        return eqx.combine(registered, static)

    def _from_start(self, times: ArrayLike) -> Array:
        start, end = self.window
        return (jnp.asarray(times) - start) / (end - start)


def _plate(series: Series, batch_size: int | None) -> numpyro.plate:
    if batch_size is not None:
        require_counts(batch_size=batch_size)
        if batch_size > len(series.times):
            raise ValueError(f"batch_size expected at most the {len(series.times)} series, got {batch_size}")
    return numpyro.plate("series", len(series.times), subsample_size=batch_size)


def checked_window(window: tuple[float, float]) -> tuple[float, float]:
    """Start and end of a window of time; a TypeError where there are not two, a ValueError where they do not rise."""
    require_two_times(window=window)
    if not window[0] < window[1]:
        raise ValueError(f"window expected two finite times, the later one second, got {window}")
    return float(window[0]), float(window[1])


def _numbers(name: str, values: Sequence[float] | None, length: int, default: float) -> tuple[float, ...]:
    numbers = (default,) * length if values is None else tuple(map(float, values))
    if len(numbers) != length or not np.isfinite(numbers).all():
        raise ValueError(f"{name} expected {length} finite numbers, got {values}")
    return numbers


def _inverse(flow: AbstractBijection, z0: Array) -> Array:
    return jnp.vectorize(lambda z: flow.inverse_and_log_det(z)[0], signature="(n)->(n)")(z0)


@eqx.filter_jit
@full_precision()
def _jitted(function: Callable, *args: Any) -> Any:
    return function(*args)
