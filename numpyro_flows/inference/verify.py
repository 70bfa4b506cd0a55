"""The verdict on a fit made without `FlowVI`: a NumPyro guide, or draws."""

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import ArrayLike, Float, PRNGKeyArray
from numpyro.infer import MCMC
from numpyro.infer.autoguide import AutoGuide

from numpyro_flows.arguments import (
    described,
    require_all,
    require_choice,
    require_instance,
    require_key,
    require_model,
)
from numpyro_flows.inference.certificate import Certificate, Draws, certify, log_mean
from numpyro_flows.inference.density_cost import Cost
from numpyro_flows.inference.exploration import LogProb
from numpyro_flows.inference.gaussian import GaussianFit, moment_matched
from numpyro_flows.inference.groups import grouped
from numpyro_flows.inference.guide_density import GuideDensity, posterior_of
from numpyro_flows.inference.host_density import HostDensity, HostPrior
from numpyro_flows.inference.judge import judge
from numpyro_flows.inference.judge_draws import judge_draws
from numpyro_flows.inference.mixture import weighted_draws
from numpyro_flows.inference.newton import Density
from numpyro_flows.inference.one_period import log_share_of_copy, one_copy, one_period
from numpyro_flows.inference.settings import FlowVISettings
from numpyro_flows.inference.survey import Survey, Weighed, look_around, search
from numpyro_flows.inference.target import Target
from numpyro_flows.modeling.model_run import model_run
from numpyro_flows.modeling.sites import Sites
from numpyro_flows.training.ahead import compilers
from numpyro_flows.training.one_thread import one_thread
from numpyro_flows.training.seeds import Seeds

_DEFAULTS = FlowVISettings()
_LEAST_DRAWS = 4  # ArviZ's r-hat needs so many


def verify_fit(
    model: Callable,
    guide_or_draws: AutoGuide | MCMC | Mapping[str, ArrayLike],
    rng_key: PRNGKeyArray,
    *args: Any,
    params: dict[str, Any] | None = None,
    settings: FlowVISettings = _DEFAULTS,
    verify: Literal["auto", "thorough", "weights"] = "auto",
    **kwargs: Any,
) -> Certificate:
    """Check a NumPyro guide, or draws such as those of NUTS, with the same checks as `FlowVI`.

    - A guide: 20,000 fresh draws get importance weights. k-hat and ESS must pass.
    - Draws: every unconstrained coordinate must have a rank-normalised r-hat below 1.01, and bulk and tail ESS above
      400.

    Both are then compared with points that they did not choose, to find missed modes, necks and heavy tails. For draws
    this comparison needs a density: a mixture of Gaussians, fitted to every other draw. The mixture's importance
    weights give the evidence, which is NaN if their k-hat is 0.7 or more. If more than 10% of the draws lie outside the
    mixture, the search is blind and the draws are not certified; `verify="weights"` skips the search.

    Args:
        model: the NumPyro model that was fitted.
        guide_or_draws: a guide (`AutoNormal`, or an `AutoContinuous` with a density, so not `AutoDAIS`), an `MCMC` that
            has run, or a dict with draws of every latent site. Each site's draws have the shape `(chains, draws,
            *site)`, as from `MCMC.get_samples(group_by_chain=True)`, or `(draws, *site)` for one chain.
        rng_key: random key for the guide's draws and the search.
        args: the model's arguments.
        params: the guide's trained parameters, `svi_result.params`.
        settings: the thresholds and other constants.
        verify: how thoroughly to search, as in `FlowVI`.
        kwargs: the model's keyword arguments.

    Raises:
        TypeError: if `guide_or_draws` has another type, or a guide is not continuous or comes without `params`.
        ValueError: if a guide has no density, belongs to another model, or its model has masked latent entries. Also if
            a latent site is missing, or draws have the wrong shape or lie outside the support.

    Source: Vehtari, Simpson, Gelman, Yao, Gabry 2024, arXiv 1507.02646, for k-hat; Vehtari, Gelman, Simpson, Carpenter,
    Bürkner 2021, arXiv 1903.08008, for r-hat.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist  # doctest: +SLOW
        >>> from numpyro.infer import MCMC, NUTS
        >>> from numpyro_flows import verify_fit
        >>> def model(y):
        ...     mu = numpyro.sample("mu", dist.Normal(0, 10))
        ...     numpyro.sample("y", dist.Normal(mu, 1), obs=y)
        >>> y = jax.numpy.array([1.0, 2.0, 3.0])
        >>> mcmc = MCMC(NUTS(model), num_warmup=500, num_samples=1000, num_chains=4, chain_method="vectorized",
        ...             progress_bar=False)
        >>> mcmc.run(jax.random.key(0), y)
        >>> certificate = verify_fit(model, mcmc, jax.random.key(1), y)
        >>> certificate.certified, certificate.rhat < 1.01
        (True, True)
    """
    require_model(model)
    require_key(rng_key)
    require_instance(FlowVISettings, "FlowVISettings()", settings=settings)
    require_choice(("auto", "thorough", "weights"), verify=verify)
    if not isinstance(guide_or_draws, AutoGuide | MCMC) and not hasattr(guide_or_draws, "keys"):
        raise TypeError(
            f"guide_or_draws expected a NumPyro guide, an MCMC or a dict of draws, got {described(guide_or_draws)}"
        )
    if isinstance(guide_or_draws, AutoGuide) and params is None:
        raise TypeError("params expected the guide's parameters, got None: pass params=svi_result.params")
    if verify == "thorough":
        settings = settings.thorough()
    seeds = Seeds.of(rng_key)
    target = Target(model, seeds.key("model"), args, kwargs)
    settings = settings.affordable(Cost.of(target.fitted.log_density, target.fitted.dim))
    with compilers() as pool, one_thread():
        verification = _Verification(pool, target, seeds, settings, verify != "weights")
        if isinstance(guide_or_draws, AutoGuide):
            return verification.of_guide(pool, guide_or_draws, params or {})
        return verification.of_chains(_unconstrained(guide_or_draws, target))


class _Verification:
    """The model's density, and the search around draws."""

    def __init__(self, pool: Executor, target: Target, seeds: Seeds, settings: FlowVISettings, searches: bool):
        self._target, self._seeds, self._settings, self._searches = target, seeds, settings, searches
        self._density = HostDensity(pool, target.fitted, settings.batch, settings.block)
        self._prior = HostPrior(pool, target.fitted, settings.batch)

    def of_guide(self, pool: Executor, guide: AutoGuide, params: dict[str, Any]) -> Certificate:
        target, settings = self._target, self._settings
        if target.free.any():
            masked = list(target.free_entries)
            raise ValueError(
                f"the guide's model expected latent sites without masked entries, got masked entries in {masked}: "
                "remove the mask, or fit the model with FlowVI"
            )
        q = GuideDensity(pool, target, posterior_of(guide, params, target), settings.block)
        num_blocks = -(-settings.certificate_draws // settings.block)
        blocks = [Draws(*map(np.asarray, q.draw(seed))) for seed in self._seeds.many(num_blocks, "verdict")]
        draws = Draws(*map(np.concatenate, zip(*blocks)))
        periodic = target.coordinates.periodic
        centre = np.median(draws.x, axis=0)
        share = log_share_of_copy(draws.x, centre, periodic)
        draws = draws._replace(log_density=draws.log_density + share, log_weight=draws.log_weight + share)
        weighed = Weighed(draws.log_density, draws.log_weight, draws.x.min(0), draws.x.max(0))
        certificate = judge(weighed, Survey(), settings)
        if np.isnan(certificate.elbo) or not self._searches:
            return certificate
        x = draws.x[np.isfinite(draws.x).all(1)]
        gaussian = moment_matched(x, settings)
        rng = self._seeds.rng("search")
        mixture = None if q.has_log_prob else grouped(x[::2], gaussian, rng, settings)
        log_prob = q.log_prob if mixture is None else mixture.log_prob
        density = one_period(self._density, centre, periodic)
        around = self._around(density, gaussian)
        survey = search(density, gaussian, around, log_prob, certificate.log_evidence, rng, settings)
        if mixture is not None:
            survey = _without(survey, Draws(*(leaf[1::2] for leaf in draws)), mixture.log_prob, settings)
        return judge(weighed, survey, settings)

    def of_chains(self, chains: Float[np.ndarray, "chains draws dim"]) -> Certificate:
        settings, rng = self._settings, self._seeds.rng("mixture")
        periodic = self._target.fitted.coordinates.periodic
        chains, centre = one_copy(chains, periodic)
        density = one_period(self._density, centre, periodic)
        draws = chains.reshape(-1, chains.shape[2])
        gaussian = moment_matched(draws, settings)
        mixture = grouped(chains[:, ::2].reshape(-1, draws.shape[1]), gaussian, rng, settings)
        weighted = weighted_draws(mixture, density, rng, settings.certificate_draws)
        weights = certify(weighted.log_weight, settings=settings)
        known = weights.khat < settings.max_khat or weights.ess >= settings.sufficient_ess
        return judge_draws(
            density,
            chains,
            mixture.log_prob,
            weights.log_evidence if known else float("nan"),
            self._around(density, gaussian) if self._searches else Survey(coordinates=self._target.fitted.coordinates),
            self._seeds.rng("search"),
            settings,
            weights.log_evidence_se if known else float("nan"),
        )

    def _around(self, density: Density, gaussian: GaussianFit) -> Survey:
        prior = self._prior(self._seeds, self._settings.prior_draws)
        rng, coordinates = self._seeds.rng("survey"), self._target.fitted.coordinates
        return look_around(density, rng, gaussian, prior, coordinates, self._settings)


def _unconstrained(draws: MCMC | Mapping[str, ArrayLike], target: Target) -> Float[np.ndarray, "chains draws dim"]:
    """Draws of all latent sites as vectors, without masked coordinates."""
    values = draws.get_samples(group_by_chain=True) if isinstance(draws, MCMC) else draws
    sites = Sites(target.site_shapes)
    packed = np.asarray(sites.pack(values))
    if packed.ndim == 2:
        packed = packed[None]
    if packed.ndim != 3 or packed.shape[1] < _LEAST_DRAWS:
        raise ValueError(
            f"guide_or_draws expected draws of shape (chains, draws, *site), at least {_LEAST_DRAWS} for each chain, "
            f"got the leading axes {packed.shape[:-1]}"
        )
    flat = sites.unpack(packed.reshape(-1, packed.shape[-1]))
    with model_run():
        x = np.asarray(jax.jit(jax.vmap(target.unconstrain))(flat))
    require_all(
        np.isfinite(x).all(1), "guide_or_draws expected draws inside the sites' supports, got draws outside", "draws"
    )
    return x[:, ~target.free].reshape(*packed.shape[:2], -1)


def _without(survey: Survey, draws: Draws, log_prob: LogProb, settings: FlowVISettings) -> Survey:
    """The survey minus the share that the guide's own weighted draws find outside the density `log_prob`."""
    log_evidence = log_mean(draws.log_weight)
    outside = draws.log_density - log_prob(draws.x) > log_evidence + np.log(settings.outside)
    own = np.where(outside, np.exp(np.minimum(draws.log_weight - log_evidence, 50.0)), 0.0)
    se = own.std() / np.sqrt(own.size)
    shares = [
        share._replace(value=float(max(share.value - own.mean(), 0.0)), se=float(np.hypot(share.se, se)))
        for share in survey.shares
    ]
    return survey._replace(shares=tuple(shares))
