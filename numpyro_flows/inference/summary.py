"""The table of a posterior: ArviZ's, with the Monte Carlo error and the tail shape of each scalar."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import xarray as xr
from arviz_base import dataset_to_dataframe, rcParams
from arviz_stats.summary import summary as arviz_summary
from jaxtyping import Float, Int, PRNGKeyArray

from numpyro_flows.inference.certificate import resample
from numpyro_flows.inference.draws import Chains
from numpyro_flows.inference.psis import smooth, tail_shape
from numpyro_flows.inference.result import Result
from numpyro_flows.inference.settings import FlowVISettings
from numpyro_flows.inference.to_arviz import Layout, attributes, in_chains
from numpyro_flows.inference.verdict import verdict
from numpyro_flows.training.seeds import Seeds

NUM_DRAWS = 20_000  # the thresholds were measured with this number
_LEAST_DRAWS = 4_000  # for models with many scalars
_MOST_NUMBERS = 40_000_000  # numbers of all draws in memory
_CHAINS = 4

# The variance does not exist if the shape of `w (x - median)^2` is 1 or more. The estimated shape has a standard error
# of 0.07 to 0.1. Share of sets of 20,000 draws that this threshold marks:
# - with a variance: lognormal (sigma 1) 1 of 3,000; Weibull (shape 0.5) 0 of 3,000; normal, gamma (shape 0.1) and
#   Student-t with 4 degrees of freedom 0 of 300; Student-t with 3 degrees of freedom 0.8%, with 2.5 20%;
# - without a variance: Student-t with 2 degrees of freedom 94%, with 1.5 all.
# `max_khat`, for the mean, marks 0.3% with 2 degrees of freedom, 26% with 1.5, all 300 of a half-Cauchy, which has no
# mean, and none of the others.
MAX_KHAT_OF_SQUARES = 0.85

_NO_MEAN = ("mean", "sd", "mcse_mean", "mcse_sd")  # NaN for a scalar without a mean
_NO_SD = ("sd", "mcse_mean", "mcse_sd")
_OWN = ("median", "iqr", "mcse_mean", "khat")
_OF_CHAINS = ("median", "iqr", "khat")  # for chains, ArviZ gives the errors
_ZERO = 700.0  # nats below the largest log weight from which a weight is rounded to zero
_MOST_NAMES = 10  # in a line of text


class WeightedDraws(NamedTuple):
    """Draws of all sites with their weights, and the draws that resampling keeps.

    Attributes:
        sites: values of the sites, each `(draws, *site)`.
        weights: normalised importance weights, `(draws,)`; draws whose weight is zero or NaN are left out.
        smoothed: Pareto-smoothed weights, used for resampling.
        mcse_factors: result of `mcse_factors` for the smoothed weights.
        kept: indices of the resampled draws, chain by chain.
        num_chains: number of Markov chains, or of chains into which resampled draws are split for ArviZ's r-hat.
    """

    sites: dict[str, np.ndarray]
    weights: Float[np.ndarray, " draws"]
    smoothed: Float[np.ndarray, " draws"]
    mcse_factors: Float[np.ndarray, " draws"]
    kept: Int[np.ndarray, " resampled"]
    num_chains: int = _CHAINS

    @classmethod
    def of(cls, posterior: Result, rng_key: PRNGKeyArray) -> "WeightedDraws":
        """20,000 draws, or fewer if there are more than 2,000 scalars; without a model their weights are equal."""
        settings, seeds = posterior._settings, Seeds.of(rng_key)
        x = jax.ShapeDtypeStruct((settings.block, posterior._target.dim), jnp.result_type(float))
        shapes = jax.eval_shape(posterior._constrain_block, x).values()
        scalars = sum(value.size for value in shapes) // settings.block
        num = int(np.clip(_MOST_NUMBERS // max(scalars, 1), _LEAST_DRAWS, NUM_DRAWS))
        if posterior.chains is not None and posterior.certificate.by == "mcmc":
            return cls.of_chains(posterior, posterior.chains)
        draws = posterior._draws.weighted(seeds, num)
        log_weights = np.asarray(draws.log_weight, np.float64)
        finite = np.isfinite(log_weights)
        log_weights = np.where(finite, log_weights, -np.inf) if finite.any() else np.zeros(num)  # as without a model
        used = log_weights > log_weights.max() - _ZERO
        log_weights = log_weights[used]
        weights, smoothed = np.exp(log_weights - log_weights.max()), np.exp(smooth(log_weights)[0])
        num_kept = _CHAINS * max(1, num // (settings.pool * _CHAINS))
        return cls(
            sites={name: np.asarray(value)[used] for name, value in posterior._constrain(draws.x).items()},
            weights=weights / weights.sum(),
            smoothed=smoothed,
            mcse_factors=mcse_factors(smoothed, num_kept),
            kept=resample(log_weights, num_kept, seeds.rng("resampling")),
        )

    @classmethod
    def of_chains(cls, posterior: Result, chains: Chains) -> "WeightedDraws":
        """All draws of Markov chains, with equal weights."""
        x, _ = chains.flat
        num = len(x)
        equal = np.full(num, 1.0 / num)
        sites = {name: np.asarray(value) for name, value in posterior._constrain(x).items()}
        return cls(sites, equal, equal, mcse_factors(equal, num), np.arange(num), len(chains.x))


def summary(posterior: Result, options: dict[str, Any]) -> pd.DataFrame | xr.Dataset:
    """The table of `FlowPosterior.summary`; `options` go to `arviz_stats.summary`."""
    draws = WeightedDraws.of(posterior, jax.random.key(0))
    layout = Layout.of(posterior) if posterior.has_model else Layout({}, {}, {})
    resampled = {name: value[draws.kept].astype(np.float64) for name, value in draws.sites.items()}
    dataset = layout.dataset(in_chains(resampled, draws.num_chains), attributes=attributes(posterior))
    by_chains = posterior.certificate.by == "mcmc"
    options = {"kind": "all" if by_chains else "stats", "fmt": "wide", "round_to": "auto"} | options
    in_full: dict[str, Any] = options | {"fmt": "xarray", "round_to": "none"}
    with np.errstate(divide="ignore", invalid="ignore"):  # from ArviZ, for scalars that never change
        base: Any = arviz_summary(dataset, **in_full)
    own = _own_columns(draws, layout, posterior._settings)[list(base.data_vars)].sel(options.get("coords") or {})
    table = _joined(base, own, posterior._settings, _OF_CHAINS if by_chains else _OWN)
    return _formatted(_rounded(table, options["round_to"]), options["fmt"])


def print_summary(posterior: Result) -> None:
    """Print the verdict, the table of `summary`, and which rows have no moments, with the reason."""
    table = summary(posterior, {})
    assert isinstance(table, pd.DataFrame)
    print(verdict(posterior))
    print(table.to_string(float_format="{:.10g}".format))
    for line in marked(table, posterior):
        print(line)


def marked(table: pd.DataFrame, posterior: Result) -> list[str]:
    """Lines of text that name the rows without a mean, and those that lack only the sd, with the reason."""
    mean, sd, khat = (table[name].to_numpy() for name in ("mean", "sd", "khat"))
    lacking = {
        "no mean or standard deviation": khat >= posterior._settings.max_khat,
        "no standard deviation": np.isnan(sd) & ~np.isnan(mean),
    }
    tails = "the tails" if posterior.certificate.certified else "the tails, or those of this fit's weights,"
    return [
        f"{what}: {tails} are too heavy; use the median and iqr of {_listed(table.index[rows])}"
        for what, rows in lacking.items()
        if rows.any()
    ]


def mcse_factors(weights: Float[np.ndarray, " draws"], num: int) -> Float[np.ndarray, " draws"]:
    """`c` such that `sqrt(sum c (f - m)^2)` is the standard error of the mean of `f` over `num` resampled draws.

    `c = w^2 + r (1 - r) / num^2`, with `r` the fraction in `num w`. The first part is the error of the weighted mean
    `m = sum w f`. The second is that of systematic resampling, which takes a draw `floor(num w)` or
    `ceil(num w)` times. For equal weights the sum is that of `num` independent draws.
    """
    fraction = (num * weights) % 1
    return weights**2 + fraction * (1 - fraction) / num**2


def _own_columns(draws: WeightedDraws, layout: Layout, settings: FlowVISettings) -> xr.Dataset:
    """The columns that ArviZ lacks, and `khat_of_squares`, along the dimension `summary`."""
    names = (*_OWN, "mcse_sd", "khat_of_squares")
    columns = {}
    for site, values in draws.sites.items():
        scalars = values.reshape(len(values), int(np.prod(values.shape[1:]))).astype(np.float64).T
        rows = np.array([_of_scalar(scalar, draws, settings) for scalar in scalars]).reshape(-1, len(names))
        columns[site] = rows.T.reshape(len(names), *values.shape[1:])
    return layout.dataset(columns, sample_dims=("summary",)).assign_coords(summary=list(names))


@np.errstate(invalid="ignore", over="ignore")  # of draws that are infinite
def _of_scalar(x: Float[np.ndarray, " draws"], draws: WeightedDraws, settings: FlowVISettings) -> tuple[float, ...]:
    # sums of products, as BLAS would use all threads for each of them
    low, median, high = np.quantile(x[draws.kept], [0.25, 0.5, 0.75])
    squares = (x - (draws.smoothed * x).sum()) ** 2
    variance = (draws.smoothed * squares).sum()
    mcse = np.sqrt((draws.mcse_factors * squares).sum())
    mcse_of_variance = np.sqrt((draws.mcse_factors * (squares - variance) ** 2).sum())
    # around the median: without a mean, that of the draws is so far out that nearly all draws are equally far from it
    distances = np.abs(x - median)
    least_share = 1 - settings.sufficient_ess  # as in the certificate: weights may look heavy-tailed on a tiny scale
    khat = tail_shape(draws.weights * distances)
    if khat >= settings.max_khat:
        khat = tail_shape(draws.weights * distances, least_share)
    khat_of_squares = tail_shape(draws.weights * distances**2, least_share)
    mcse_sd = mcse_of_variance / (2 * np.sqrt(variance)) if variance > 0 else 0.0
    return median, high - low, mcse, khat, mcse_sd, khat_of_squares


def _joined(base: xr.Dataset, own: xr.Dataset, settings: FlowVISettings, names: tuple[str, ...]) -> xr.Dataset:
    """ArviZ's columns with our own, and NaN for moments that do not exist."""
    khat = own.sel(summary="khat", drop=True)
    no_mean = khat >= settings.max_khat
    no_sd = no_mean | (own.sel(summary="khat_of_squares", drop=True) >= MAX_KHAT_OF_SQUARES)
    ours = [*names, *(["mcse_sd"] if "mcse_sd" in base["summary"] and names is _OWN else [])]
    theirs = [str(name) for name in base["summary"].values if name not in ours]
    table = xr.concat([base.sel(summary=theirs), own.sel(summary=ours)], dim="summary")
    columns = table["summary"]
    return table.where(~(no_mean & columns.isin(_NO_MEAN)) & ~(no_sd & columns.isin(_NO_SD)))


def _rounded(table: xr.Dataset, round_to: Any) -> xr.Dataset:
    """Round the table; by default to a thousandth of the interquartile range, which is below the Monte Carlo error."""
    if round_to in ("none", "None"):
        return table
    if round_to != "auto":
        from arviz_stats.base.stats_utils import round_num

        digits = rcParams["stats.round_to"] if round_to is None else round_to
        return xr.apply_ufunc(round_num, table, digits, vectorize=True)
    columns = table["summary"]
    iqr, median = table.sel(summary="iqr", drop=True), table.sel(summary="median", drop=True)
    size = xr.where(iqr > 0, iqr, xr.where(median != 0, np.abs(median), 1.0))
    decimals = 3 - np.floor(np.log10(size))
    decimals = xr.where(columns.isin(["khat", "r_hat"]), 2, decimals)
    power = 10.0 ** xr.where(columns.str.match("ess_|min_ss"), 0, decimals)
    return (np.round(table * power) / power).transpose("summary", ...)


def _formatted(table: xr.Dataset, fmt: str) -> pd.DataFrame | xr.Dataset:
    """A table in one of ArviZ's formats."""
    if fmt == "xarray":
        return table
    if fmt == "wide":
        return dataset_to_dataframe(table, sample_dims=["summary"]).T
    long = table.to_dataframe().reset_index().set_index("summary")
    return long.set_index(pd.Index(list(long.index)))


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _MOST_NAMES} others" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more
