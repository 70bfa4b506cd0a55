"""Whether posteriors are calibrated: simulated data sets, whose true values are known, fitted and compared."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray
from numpyro.infer.util import log_density
from tqdm.auto import tqdm

from numpyro_flows.arguments import described, require_counts, require_key, require_model, require_numbers
from numpyro_flows.diagnostics.calibration_methods import Method, draws_of, prepared
from numpyro_flows.diagnostics.calibration_scores import DENSITY, JOINT, LogDensity, coverage, scores, verdicts
from numpyro_flows.inference.model_arguments import run_with_arguments
from numpyro_flows.modeling.model_run import model_run
from numpyro_flows.modeling.simulation import Simulations, Simulator, with_data
from numpyro_flows.training.seeds import Seeds

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_UNNAMED = "parameter"  # the site of pairs whose latents are one array


@dataclass(frozen=True, eq=False)
class Calibration:
    """What simulated data sets say of a method; made by `simulation_based_calibration`.

    A rank is the share of posterior draws below the true value, with ties broken at random, and uniform on [0, 1] where
    the method is right. `joint` is the rank of the true point's distance from the centre of the draws, which sees wrong
    scales and correlations (TARP); `log density` is that of the model's joint density.

    Attributes:
        ranks: a row for each data set that counts, a column for each scalar, `log density` and `joint`.
        table: a row for each column of `ranks`. `verdict`: "calibrated", "overconfident" (too narrow),
            "underconfident", "biased", "wrong shape", or two of them. `p_value`: adjusted for the number of rows, so a
            right method has one below `error` with probability `error` at most. Of scalars also `contraction`, 1 minus
            the posterior variance over the prior one; `z_mean` and `z_sd` of (posterior mean - true) / posterior sd.
        coverage: for each scalar and level, the share of central posterior intervals that contain the true value, with
            a 95% binomial interval, `lower` and `upper`.
        recovery: for each data set and scalar: `true`, posterior `mean`, `sd`, and a central 95% interval.
        left_out: for each data set that does not count, why: its fit was not certified, failed, or had draws that are
            not finite. What the table says is of the others only.
        num_draws: the fewest draws that a data set has.
        error: the probability of a false alarm, at most.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist
        >>> from numpyro_flows import simulation_based_calibration
        >>> def model(y=None):
        ...     mu = numpyro.sample("mu", dist.Normal(0, 1))
        ...     numpyro.sample("y", dist.Normal(mu, 1), obs=y)
        >>> def exact(rng_key, data):
        ...     return {"mu": data["y"] / 2 + jax.random.normal(rng_key, (100,)) / 2**0.5}
        >>> key = jax.random.key(0)
        >>> calibration = simulation_based_calibration(key, model, exact, observed=["y"], num_data_sets=50)
        >>> calibration.calibrated
        True
        >>> calibration.ranks.shape
        (50, 3)
    """

    ranks: "pd.DataFrame"
    table: "pd.DataFrame"
    coverage: "pd.DataFrame"
    recovery: "pd.DataFrame"
    left_out: "pd.Series"
    num_draws: int
    error: float

    @property
    def calibrated(self) -> bool:
        """Whether every row of the table is."""
        return bool((self.table["verdict"] == "calibrated").all())

    def verdict(self) -> str:
        """In one or two lines: what is wrong, and how many data sets were left out."""
        table = self.table.sort_values(by="p_value", kind="stable")
        wrong = table.loc[table["verdict"] != "calibrated"]
        num = f"{len(self.ranks)} data sets"
        if len(wrong):
            shown = [f"{name} {row['verdict']}" for name, row in wrong[:5].iterrows()]
            more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
            text = f"NOT calibrated on {num}: {'; '.join(shown)}{more}"
        else:
            text = f"no sign of miscalibration on {num}, {len(self.table)} checks"
        if len(self.left_out):
            text += f"\n{len(self.left_out)} others were left out, so this is about certified fits only; the first: "
            text += self.left_out.iloc[0]
        return text

    def print_summary(self, max_rows: int = 40) -> None:
        """The verdict, and the table with the coverage; of more than `max_rows` rows those of the smallest p-values."""
        shares: Any = self.coverage["coverage"].unstack()
        table = self.table.join(shares.set_axis([f"{level:.0%}" for level in shares], axis=1))
        if len(table) > max_rows:
            table = table.sort_values("p_value")[:max_rows]
        print(self.verdict(), end="\n\n")
        text: Any = table.map(
            lambda value: "" if value != value else value if isinstance(value, str) else f"{value:.3g}"
        )
        print(text.to_string())
        print(f"\np-values are adjusted for {len(self.table)} checks: a right method fails with probability", end=" ")
        print(f"{self.error:g} at most. The last columns are the coverage of central intervals.")

    def __str__(self) -> str:
        return self.verdict()

    def __repr__(self) -> str:
        return f"Calibration({self.verdict().splitlines()[0]}; {len(self.left_out)} left out)"

    def plot(self, names: Sequence[str] | None = None) -> "Figure":
        """Differences of the ranks' ECDFs from the uniform one, with the bands that all stay in together.

        Args:
            names: of columns of `ranks`; by default the 12 with the smallest p-values.

        Raises:
            ValueError: for names that are not there.
        """
        from numpyro_flows.diagnostics.calibration_plots import plot_ecdf_differences

        names = self._names(names, list(self.ranks), by_p_value=True)
        ranks = {name: self.ranks[name].to_numpy() for name in names}
        verdicts = dict(self.table["verdict"].items())
        return plot_ecdf_differences(ranks, verdicts, self.error / len(self.table))

    def plot_recovery(self, names: Sequence[str] | None = None) -> "Figure":
        """Posterior means and central 95% intervals over true values.

        Args:
            names: of scalars; by default the first 12.

        Raises:
            ValueError: for names that are not there.
        """
        from numpyro_flows.diagnostics.calibration_plots import plot_recovery

        scalars = [name for name in self.ranks if name not in (JOINT, DENSITY)]
        return plot_recovery(self.recovery, self._names(names, scalars, by_p_value=False))

    def _names(self, names: Sequence[str] | None, known: list[str], *, by_p_value: bool) -> list[str]:
        if names is None:
            first = self.table.loc[known].sort_values("p_value", kind="stable").index[:12] if by_p_value else known[:12]
            return [name for name in known if name in set(first)]
        if isinstance(names, str) or not set(names) <= set(known) or not len(names):
            raise ValueError(f"names expected a list of some of {known}, got {names!r}")
        return list(names)


def simulation_based_calibration(
    rng_key: PRNGKeyArray,
    model: Callable | tuple[Any, Any],
    method: Method,
    *args: Any,
    observed: Sequence[str] | None = None,
    num_data_sets: int = 500,
    num_draws: int = 200,
    error: float = 0.05,
    progress_bar: bool = True,
    **kwargs: Any,
) -> Calibration:
    """Draw parameters and data from a model, fit every data set, and rank the true values among posterior draws.

    Where the method is right, the ranks are uniform. They are tested by the largest difference of their ECDF, and by
    mean and variance of their normal scores; each test is exact, and Bonferroni's correction makes them one.

    Args:
        rng_key: random key.
        model: a NumPyro model that can be run forward; or a pair `(latents, data)` of simulated arrays, or dicts of
            them, each with a leading axis of data sets, of a simulator without a density.
        method: what is checked. `FlowVI(model, ...)`, compiled once for all data sets; or NumPyro's
            `MCMC(NUTS(model), ...)`, compiled once, with vectorized chains that are thinned by their ESS. Or an
            `AmortizedPosterior`, with its weights; or a conditional `FlowDistribution`, given the data. Or a function
            `draw(rng_key, data)` that returns independent draws `(num_draws, *site)` as a dict of sites. The model of
            `method` may differ from `model`, to see what a simplified one does.
        args: the model's arguments, and `kwargs`: with None in place of the data.
        observed: names of the sites that are data; of a model only.
        num_data_sets: number of data sets, at least 20; pairs are all used. 500 find a standard deviation that is 20%
            too small nearly always.
        num_draws: posterior draws of each.
        error: probability of a false alarm, at most, in (0, 1).
        progress_bar: whether to show one.

    Raises:
        TypeError: where an argument is of another kind.
        ValueError: for numbers out of their range, a model that does not draw its data, draws of other shapes, and
            where fewer than 20 data sets have draws.

    Source: Talts et al. 2018, arXiv 1804.06788; Säilynoja, Bürkner, Vehtari 2022, arXiv 2103.10522, for the bands;
    Modrák et al. 2023, arXiv 2211.02383, for the density; Lemos et al. 2023, arXiv 2302.03026, for the joint rank.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist  # doctest: +SLOW
        >>> from numpyro_flows import FlowVI, simulation_based_calibration
        >>> def model(y=None):
        ...     mu = numpyro.sample("mu", dist.Normal(0, 1))
        ...     numpyro.sample("y", dist.Normal(mu, 1), obs=y)
        >>> fits = FlowVI(model, progress_bar=False)
        >>> simulation_based_calibration(
        ...     jax.random.key(0), model, fits, observed=["y"], num_data_sets=20, progress_bar=False
        ... )
        Calibration(no sign of miscalibration on 20 data sets, 3 checks; 0 left out)
    """
    require_key(rng_key)
    require_counts(20, num_data_sets=num_data_sets)
    require_counts(10, num_draws=num_draws)
    require_numbers("(0, 1)", error=error)
    seeds = Seeds.of(rng_key)
    density: LogDensity | None = None
    if isinstance(model, tuple):
        if observed is not None or args or kwargs:
            raise ValueError("observed, args and kwargs expected none with pairs (latents, data), which have the data")
        true, data = _pairs(model)
    else:
        require_model(model)
        if observed is None:
            raise ValueError("observed expected the names of the sites that are data, for example ['y'], got None")
        simulate = partial(Simulator, model, observed)
        args, kwargs, simulator = run_with_arguments(simulate, model, args, kwargs)
        latents, data = simulator(seeds.key("data sets"), num_data_sets)
        true = {name: latents[name] for name in simulator.latents}  # in the model's order
        density = _log_density(model, data, args, kwargs)
    method = prepared(method, args, kwargs, num_draws)
    num = len(next(iter(true.values())))
    draws = (_by_site(sites) for sites in draws_of(method, seeds.key("method"), data, args, kwargs, num_draws))
    bar = tqdm(draws, total=num, desc="data sets", disable=not progress_bar)
    found = scores(true, bar, density, seeds.rng("ties"))
    return Calibration(
        ranks=found.ranks,
        table=verdicts(found, error),
        coverage=coverage(found.ranks),
        recovery=found.recovery,
        left_out=found.left_out,
        num_draws=found.num_draws,
        error=error,
    )


def _pairs(pairs: tuple[Any, Any]) -> Simulations:
    """Simulated parameters as a dict of sites, and their data."""
    if len(pairs) != 2:
        raise ValueError(f"model expected a model, or a pair (latents, data), got {len(pairs)} parts")
    latents = {name: np.asarray(values) for name, values in _by_site(pairs[0]).items()}
    data = jax.tree.map(np.asarray, pairs[1])
    lengths = {leaf.shape[:1] for leaf in (*latents.values(), *jax.tree.leaves(data))}
    if len(lengths) != 1 or () in lengths:
        raise ValueError(f"model expected latents and data with one number of data sets, got {sorted(lengths)}")
    return Simulations(latents, data)


def _by_site(sites: Any) -> Any:
    """Arrays as a dict of one site; texts, which say why there is nothing, as they are."""
    if isinstance(sites, Mapping | str):
        return sites
    if not hasattr(sites, "shape"):
        raise TypeError(f"draws expected a dict of arrays, or one array, got {described(sites)}")
    return {_UNNAMED: sites}


def _log_density(model: Callable, all_data: dict[str, Any], args: tuple, kwargs: dict[str, Any]) -> LogDensity:
    """`log p(sites, data)` of draws of data set `number`."""

    @jax.jit
    def of_draws(data: dict[str, Any], sites: dict[str, Any]) -> Any:
        return jax.vmap(lambda draw: log_density(with_data(model), (data, *args), kwargs, draw)[0])(sites)

    most = 0

    def of_data_set(number: int, sites: dict[str, np.ndarray]) -> np.ndarray:
        nonlocal most
        num = len(next(iter(sites.values())))
        most = max(most, num)  # fewer draws are filled up, so that hardly any length is compiled anew
        filled = {name: jnp.asarray(np.resize(values, (most, *values.shape[1:]))) for name, values in sites.items()}
        data = {name: jnp.asarray(values[number]) for name, values in all_data.items()}
        with model_run():
            return np.asarray(of_draws(data, filled), np.float64)[:num]

    return of_data_set
