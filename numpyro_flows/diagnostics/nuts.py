"""Comparison of a fit with NUTS on the same model and data, as tables and plots."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from numpyro_flows.arguments import described, require_counts, require_key
from numpyro_flows.diagnostics.tables import compare_methods, compare_sites
from numpyro_flows.diagnostics.timed_nuts import run_nuts
from numpyro_flows.inference.posterior import FlowPosterior
from numpyro_flows.inference.psis import smooth
from numpyro_flows.inference.target import Target

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from arviz_plots.plot_collection import PlotCollection

    from numpyro_flows.inference.to_arviz import Coords

_MAX_RHAT = 1.01  # Vehtari et al. 2021, arXiv 1903.08008


@dataclass(frozen=True, eq=False)
class NutsComparison:
    """A fit and NUTS on the same posterior; made by `compare_with_nuts`.

    Attributes:
        sites: one row for each scalar, latent or deterministic, with ArviZ's labels. Columns: `flow_mean`, `nuts_mean`,
            `flow_sd`, `nuts_sd`; `difference_in_mcse`, the flow's mean minus NUTS's over the standard error of that
            difference; `difference_in_sd`, the same over the pooled posterior sd, `sqrt((flow_sd^2 + nuts_sd^2) / 2)`;
            `sd_ratio`, flow over NUTS; `wasserstein`, the distance between the two marginals in pooled sds;
            `nuts_ess_bulk`, `nuts_ess_tail` and `nuts_rhat`. A scalar that never changes, such as the corner of a
            Cholesky factor, has NaN in the columns that compare.
        methods: rows `flow` and `NUTS`. Columns: `seconds` for fitting and drawing, without `compile_seconds`;
            `gradient_evaluations` of the model's log density; `draws`; `min_ess_bulk` and `min_ess_tail`, the smallest
            over all scalars (for the flow, both are the certificate's relative ESS times the number of draws);
            `ess_per_second`, `min_ess_bulk` over `seconds`; `ess_per_second_compiling`, the same with compilation
            included; `divergences`, `max_rhat` and `khat`, NaN for the method without them.
        flow: DataTree of `FlowPosterior.sample` for plots: as many draws and chains as NUTS has.
        nuts: DataTree of NUTS's draws, with sample_stats.
        certified: whether the fit is certified.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist  # doctest: +SLOW
        >>> from numpyro_flows import FlowVI, compare_with_nuts
        >>> def model():
        ...     numpyro.sample("x", dist.Normal(0, 1))
        >>> posterior = FlowVI(model, progress_bar=False).run(jax.random.key(0))
        >>> comparison = compare_with_nuts(posterior, jax.random.key(1), num_samples=200, progress_bar=False)
        >>> list(comparison.sites.index)
        ['x']
    """

    sites: "pd.DataFrame"
    methods: "pd.DataFrame"
    flow: "xr.DataTree"
    nuts: "xr.DataTree"
    certified: bool

    def verdict(self) -> str:
        """The largest differences, and whether NUTS can be trusted as a reference, in two lines of text."""
        nuts = self.methods.loc["NUTS"]
        sites = self.sites.dropna(subset=["difference_in_mcse"])
        mcse, sd = sites["difference_in_mcse"].abs(), sites["difference_in_sd"].abs()
        fit = f"flow ({'certified' if self.certified else 'NOT certified'}): "
        if len(sites):
            fit += f"means differ from NUTS's by at most {sd.max():.2g} sd ({sd.idxmax()}), "
            fit += f"{mcse.max():.2g} Monte Carlo standard errors ({mcse.idxmax()})"
        doubts = [f"{nuts['divergences']:.0f} divergences"] if nuts["divergences"] else []
        doubts += ["one chain, so no r-hat"] if self.nuts["posterior"].sizes["chain"] == 1 else []
        doubts += [f"r-hat up to {nuts['max_rhat']:.3f}"] if nuts["max_rhat"] > _MAX_RHAT else []
        reference = f"NUTS: not a safe reference: {' and '.join(doubts)}" if doubts else "NUTS: no sign of trouble"
        return f"{fit}\n{reference}"

    def print_summary(self, max_rows: int = 40) -> None:
        """Print the verdict and both tables; with more than `max_rows` scalars, only those that differ most."""
        print(self.verdict(), end="\n\n")
        print(self.methods.T.map(lambda value: f"{value:,.4g}").to_string(), end="\n\n")
        sites = self.sites
        if len(sites) > max_rows:
            print(f"the {max_rows} of {len(sites)} scalars that differ most:")
            sites = sites.sort_values("difference_in_sd", key=abs, ascending=False)[:max_rows]
        print(sites.map(lambda value: f"{value:.3g}").to_string())

    def __str__(self) -> str:
        return self.verdict()

    def plot_forest(self, **kwargs: Any) -> "PlotCollection":
        """ArviZ's forest plot of both fits; keywords (`var_names`, `coords`, ...) go to `arviz_plots.plot_forest`."""
        from numpyro_flows.plots import plot_forest

        return plot_forest({"flow": self.flow, "NUTS": self.nuts}, **kwargs)

    def plot_density(self, **kwargs: Any) -> "PlotCollection":
        """Marginal densities of both fits in the same axes; keywords go to `arviz_plots.plot_dist`."""
        from numpyro_flows.plots import plot_density

        return plot_density({"flow": self.flow, "NUTS": self.nuts}, **kwargs)

    def plot(self, path: str | os.PathLike, **kwargs: Any) -> None:
        """Write a plot to a file (`.png`, `.svg`, `.pdf`): densities, or a forest plot if there are over 40 scalars.

        Keywords (`var_names`, `coords`, ...) go to `plot_density` or `plot_forest`.
        """
        from arviz_base import extract, rcParams

        from numpyro_flows.plots import save

        names = {name: kwargs[name] for name in ("var_names", "filter_vars") if name in kwargs}
        selected = extract(self.nuts, **names, keep_dataset=True, combined=False).sel(kwargs.get("coords", {}))
        num_scalars = sum(array[0, 0].size for array in selected.data_vars.values())
        save((self.plot_density if num_scalars <= rcParams["plot.max_subplots"] else self.plot_forest)(**kwargs), path)


def compare_with_nuts(
    posterior: FlowPosterior,
    rng_key: PRNGKeyArray,
    *,
    num_warmup: int = 1000,
    num_samples: int = 1000,
    num_chains: int = 4,
    num_flow_samples: int | None = None,
    coords: "Coords | None" = None,
    progress_bar: bool = True,
) -> NutsComparison:
    """Run NUTS on a fit's model and data, and compare the two.

    NUTS is NumPyro's, with its defaults and vectorized chains. The draws equal those of
    `MCMC(NUTS(model), chain_method="vectorized", ...).run(rng_key, ...)`. NUTS is compiled once, before its run, so
    the seconds are measured with and without compilation; finding the initial states counts as compilation. The
    gradients of NUTS are the leapfrog steps of all chains, warm-up included.

    The flow's means and standard deviations are self-normalised estimates with Pareto-smoothed weights. The mean `m =
    sum w f / sum w` has the standard error `sqrt(sum w^2 (f - m)^2) / sum w`. NUTS's errors are ArviZ's.

    Args:
        posterior: a fit.
        rng_key: random key.
        num_warmup: warm-up steps of each chain.
        num_samples: draws of each chain, at least 4.
        num_chains: number of chains.
        num_flow_samples: draws of the flow, at least 100; by default the number of draws of all chains.
        coords: labels along named dimensions, as in ArviZ: `{"school": ["Choate", ...]}`.
        progress_bar: whether to show a progress bar.

    Raises:
        TypeError: if `posterior` is not a `FlowPosterior`, `rng_key` is not a random key, or a number is not an
            integer.
        ValueError: if a number is out of its range, or the model has a subsampled plate.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist  # doctest: +SLOW
        >>> from numpyro_flows import FlowVI, compare_with_nuts
        >>> def model():
        ...     numpyro.sample("x", dist.Normal(0, 1))
        >>> posterior = FlowVI(model, progress_bar=False).run(jax.random.key(0))
        >>> comparison = compare_with_nuts(posterior, jax.random.key(1), num_samples=200, progress_bar=False)
        >>> list(comparison.methods.index)
        ['flow', 'NUTS']
    """
    if not isinstance(posterior, FlowPosterior):
        raise TypeError(f"posterior expected a FlowPosterior, got {described(posterior)}")
    require_key(rng_key)
    require_counts(0, num_warmup=num_warmup)
    require_counts(4, num_samples=num_samples)
    require_counts(num_chains=num_chains)
    num_flow_samples = num_chains * num_samples if num_flow_samples is None else num_flow_samples
    require_counts(100, num_flow_samples=num_flow_samples)
    target = posterior._target
    if target.rows is not None:
        raise ValueError(
            f"posterior expected a model without a subsampled plate, got {target.rows.plate!r}: NUTS would use only "
            "one block of its rows. Fit the model without subsample_size"
        )
    import xarray as xr

    from numpyro_flows.inference.to_arviz import Layout, attributes

    layout = Layout.of(posterior)
    layout.require_known(coords)
    flow_key, resample_key = jax.random.split(jax.random.fold_in(rng_key, 1))
    (draws, log_weights), flow_seconds, flow_compiling = _timed(
        lambda: posterior.sample_weighted(flow_key, num_flow_samples)
    )
    run = run_nuts(
        target.model if isinstance(target, Target) else posterior.model,  # with normals for masked entries
        posterior.args,
        posterior.kwargs,
        rng_key,
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=num_chains,
        progress_bar=progress_bar,
    )
    nuts_draws, nuts_seconds, nuts_compiling = _timed(lambda: _constrain(posterior, run.latents))

    flow = layout.dataset({name: value[None] for name, value in draws.items()}, coords)
    nuts = layout.dataset(nuts_draws, coords)
    sites = compare_sites(flow, np.exp(smooth(log_weights)[0]), nuts)
    smallest = sites.min()
    ess = posterior.ess * num_flow_samples
    kept = posterior.sample(resample_key, num_chains * num_samples)
    kept = {name: value.reshape(num_chains, num_samples, *value.shape[1:]) for name, value in kept.items()}
    kept = layout.dataset(kept, coords, attributes(posterior))
    compiling = ("tracing", "compilation")
    fit_seconds = {stage: seconds for stage, seconds in posterior.seconds.items() if stage not in compiling}
    return NutsComparison(
        sites=sites,
        methods=compare_methods(
            flow={
                "seconds": sum(fit_seconds.values()) + flow_seconds,
                "compile_seconds": sum(posterior.seconds[stage] for stage in compiling) + flow_compiling,
                "gradient_evaluations": sum(posterior.gradient_evaluations.values()),
                "draws": num_flow_samples,
                "min_ess_bulk": ess,
                "min_ess_tail": ess,
                "khat": posterior.khat,
            },
            nuts={
                "seconds": run.seconds + nuts_seconds,
                "compile_seconds": run.compile_seconds + nuts_compiling,
                "gradient_evaluations": run.gradient_evaluations,
                "draws": num_chains * num_samples,
                "min_ess_bulk": smallest["nuts_ess_bulk"],
                "min_ess_tail": smallest["nuts_ess_tail"],
                "divergences": int(run.stats["diverging"].sum()),
                "max_rhat": sites.max()["nuts_rhat"],
            },
        ),
        flow=xr.DataTree.from_dict({"posterior": kept}),
        nuts=xr.DataTree.from_dict({"posterior": nuts, "sample_stats": layout.dataset(run.stats)}),
        certified=posterior.certified,
    )


def _timed(function: Callable[[], Any]) -> tuple[Any, float, float]:
    """A function's result, the seconds of its second call, and the extra seconds of its first call, which compiles."""
    start = time.perf_counter()
    jax.block_until_ready(function())
    middle = time.perf_counter()
    result = jax.block_until_ready(function())
    seconds = time.perf_counter() - middle
    return result, seconds, max(0.0, middle - start - seconds)


def _constrain(posterior: FlowPosterior, latents: dict[str, np.ndarray]) -> dict[str, Array]:
    """All sites' values, each `(chains, draws, *site)`, of unconstrained latent sites."""
    chains, draws = next(iter(latents.values())).shape[:2]
    x = np.concatenate([latents[name].reshape(chains * draws, -1) for name in posterior._target.shapes], axis=1)
    sites = posterior._constrain(jnp.asarray(x))
    return {name: value.reshape(chains, draws, *value.shape[1:]) for name, value in sites.items()}
