"""What data sets with known true values say of a method: ranks, moments and intervals of each, and verdicts of all."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from numpyro_flows.diagnostics.ranks import joint_rank, normalised_ranks, uniformity

JOINT, DENSITY = "joint", "log density"
LEVELS = (0.5, 0.8, 0.95)  # of the central intervals whose coverage is counted
LEAST_DATA_SETS = 20

LogDensity = Callable[[Any, dict[str, np.ndarray]], Float[np.ndarray, " num"]]


class Scores(NamedTuple):
    """Of the data sets that have posterior draws.

    ranks: normalised ranks, a row for each data set and a column for each quantity.
    recovery: a row for each data set and scalar: `true`, `mean`, `sd`, and the central 95% interval, `lower`, `upper`.
    left_out: why the others have no draws.
    num_draws: the fewest that any has.
    """

    ranks: pd.DataFrame
    recovery: pd.DataFrame
    left_out: pd.Series
    num_draws: int


class Scalars(NamedTuple):
    """The scalars of some sites, and those that vary among true values: a corner of a Cholesky factor does not."""

    sites: tuple[str, ...]
    names: list[str]
    varying: np.ndarray

    @classmethod
    def of(cls, true: Mapping[str, np.ndarray]) -> "Scalars":
        names = [label for name, values in true.items() for label in _labels(name, values.shape[1:])]
        scalars = cls(tuple(true), names, np.ones(len(names), bool))
        flat = scalars.flat(true)
        varying = (flat != flat[0]).any(0)
        return scalars._replace(names=[n for n, varies in zip(names, varying) if varies], varying=varying)

    def flat(self, sites: Mapping[str, Any]) -> Float[np.ndarray, "num scalars"]:
        columns = [np.asarray(sites[name]) for name in self.sites]
        return np.concatenate([c.reshape(len(c), -1) for c in columns], 1).astype(np.float64)[:, self.varying]


def scores(
    true: dict[str, np.ndarray],
    posteriors: Iterable[Any],
    log_density: LogDensity | None,
    rng: np.random.Generator,
) -> Scores:
    """Ranks and moments of true values among the draws of each data set.

    Raises:
        TypeError: where draws are no dict of arrays.
        ValueError: where draws lack all sites or have other shapes, or fewer than 20 data sets have draws.
    """
    scalars: Scalars | None = None
    ranks, recovery, left_out, numbers, least = [], [], {}, [], None
    for number, sites in enumerate(posteriors):
        if isinstance(sites, str):
            left_out[number] = sites
            continue
        one = {name: values[number : number + 1] for name, values in true.items()}
        sites = _checked(sites, one)
        if scalars is None:
            scalars = Scalars.of({name: values for name, values in true.items() if name in sites})
        value, draws = scalars.flat(one)[0], scalars.flat(sites)
        if not np.isfinite(draws).all():
            left_out[number] = "its draws are not finite"
            continue
        row = normalised_ranks(value, draws, rng).tolist()
        if log_density is not None and sites.keys() == true.keys():
            both = {name: np.concatenate([one[name], sites[name]]) for name in true}
            density = np.nan_to_num(log_density(number, both), nan=-np.inf)[:, None]
            row += normalised_ranks(density[0], density[1:], rng).tolist()
        ranks.append([*row, joint_rank(value, draws, rng)])
        tails = np.quantile(draws, [0.5 - LEVELS[-1] / 2, 0.5 + LEVELS[-1] / 2], axis=0)
        recovery.append(np.stack([value, draws.mean(0), draws.std(0, ddof=1), *tails], 1))
        numbers.append(number)
        least = len(draws) if least is None else min(least, len(draws))
    reasons = pd.Series(left_out, dtype=object, name="why")
    if len(numbers) < LEAST_DATA_SETS or scalars is None or least is None:
        why = f": {reasons.iloc[0]}" if len(reasons) else ""
        raise ValueError(f"expected at least {LEAST_DATA_SETS} data sets with draws, got {len(numbers)}{why}")
    joint = [DENSITY, JOINT] if len(ranks[0]) > len(scalars.names) + 1 else [JOINT]
    index = pd.Index(numbers, name="data set")
    columns = ["true", "mean", "sd", "lower", "upper"]
    return Scores(
        ranks=pd.DataFrame(ranks, index, [*scalars.names, *joint]),
        recovery=pd.DataFrame(
            np.concatenate(recovery), pd.MultiIndex.from_product([index, scalars.names], names=["", "scalar"]), columns
        ).rename_axis(index=["data set", "scalar"]),
        left_out=reasons,
        num_draws=least,
    )


def verdicts(found: Scores, error: float) -> pd.DataFrame:
    """A row for each quantity; all are right together with probability `1 - error` or more."""
    rows = []
    for name, ranks in found.ranks.items():
        test = uniformity(ranks.to_numpy())
        p_value = min(1.0, found.ranks.shape[1] * test.p_value)
        wrong = p_value < error
        row: dict[str, Any] = {"verdict": "calibrated", "p_value": p_value}
        if name in (JOINT, DENSITY):
            outwards = test.mean if name == JOINT else -test.mean
            if wrong:
                shifted = test.location < 0.01
                row["verdict"] = ("overconfident" if outwards > 0 else "underconfident") if shifted else "wrong shape"
            rows.append(row)
            continue
        if wrong:
            kinds = ["biased"] if test.location < 0.01 else []
            kinds += [("over" if test.variance > 1 else "under") + "confident"] if test.dispersion < 0.01 else []
            row["verdict"] = " and ".join(kinds) or "wrong shape"
        of_scalar = found.recovery.xs(name, level="scalar")
        z = (of_scalar["mean"] - of_scalar["true"]) / of_scalar["sd"].replace(0.0, np.nan)
        row["contraction"] = 1 - (of_scalar["sd"] ** 2).mean() / of_scalar["true"].var()
        row |= {"z_mean": z.mean(), "z_sd": z.std()}
        rows.append(row)
    return pd.DataFrame(rows, found.ranks.columns)


def coverage(ranks: pd.DataFrame) -> pd.DataFrame:
    """For each scalar and level: the share of central intervals with the true value, and its 95% binomial interval."""
    rows = {}
    for name in ranks.columns.drop([JOINT, DENSITY], errors="ignore"):
        for level in LEVELS:
            inside = int((np.abs(2 * ranks[name] - 1) < level).sum())
            outside = len(ranks) - inside
            lower = stats.beta.ppf(0.025, inside, outside + 1) if inside else 0.0  # Clopper, Pearson 1934
            upper = stats.beta.ppf(0.975, inside + 1, outside) if outside else 1.0
            rows[name, level] = {"coverage": inside / len(ranks), "lower": lower, "upper": upper}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(index=["scalar", "level"])


def _checked(sites: Any, one: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The draws of the sites that have true values."""
    if not isinstance(sites, Mapping):
        raise TypeError(f"draws expected a dict of the sites {list(one)}, got {type(sites).__name__}")
    draws = {name: np.asarray(sites[name]) for name in one if name in sites}
    if not draws:
        raise ValueError(f"draws expected some of the sites {list(one)}, got {list(sites)}")
    lengths = {len(values) if values.ndim else 0 for values in draws.values()}
    if len(lengths) > 1 or any(values.shape[1:] != one[name].shape[1:] for name, values in draws.items()):
        expected = {name: ("num_draws", *one[name].shape[1:]) for name in draws}
        raise ValueError(f"draws expected the shapes {expected}, got { ({n: v.shape for n, v in draws.items()}) }")
    if min(lengths) < 2:
        raise ValueError(f"draws expected at least 2 of each data set, got {min(lengths)}")
    return draws


def _labels(name: str, shape: tuple[int, ...]) -> list[str]:
    return [name] if shape == () else [f"{name}[{', '.join(map(str, index))}]" for index in np.ndindex(shape)]
