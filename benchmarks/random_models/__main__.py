"""Fit random small models by default FlowVI: count crashes and certificates, and compare certified fits with NUTS.

    uv run --group benchmarks python -m benchmarks.random_models [--models 200] [--first 0] [--float32]
        [--without-nuts] [--refused-too] [--resume]

NUTS is NumPyro's, 4 vectorised chains of 1,000 + 1,000 steps with `target_accept_prob=0.9`. It is a reference where
every r-hat is below 1.01, every ESS above 400, and at most 1% of the steps diverge; else a longer run is tried. A
scalar is wrong where its mean is off by over 0.15 sd or its sd by over 12%, beyond 4 Monte Carlo standard errors of
both. Scalars without a mean or an sd by `FlowPosterior.summary` are left out. Results are written after every model.
"""

import argparse
import statistics
import time
import traceback
import warnings
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd
from numpyro.infer import MCMC, NUTS

from benchmarks.random_models.models import RandomModel, random_model
from benchmarks.results import read, write
from numpyro_flows import FlowVI

# isort: split
from arviz_base import from_dict  # after NumPyro, which it would load lazily
from arviz_stats.summary import summary

MEAN_BOUND, SD_BOUND, ERRORS = 0.15, 0.12, 4.0
RUNS = ((1000, 1000, 0.9), (2000, 5000, 0.97))  # warm-up, draws and target acceptance of NUTS: the first, the longer
MAX_RHAT, LEAST_ESS, MOST_DIVERGENT = 1.01, 400, 0.01


class Errors(NamedTuple):
    """The largest differences between a fit and NUTS, each with its scalar; `left_out` have no moments by the fit."""

    mean: float
    mean_of: str
    sd: float
    sd_of: str
    wrong: str
    left_out: int


def reference(drawn: RandomModel, number: int) -> tuple[pd.DataFrame | None, str]:
    """Moments by NUTS where it converged, and how it ran."""
    text = ""
    for num_warmup, num_samples, accept in RUNS:
        start = time.perf_counter()
        kernel = NUTS(drawn.model, target_accept_prob=accept)
        options = {"num_chains": 4, "chain_method": "vectorized", "progress_bar": False}
        mcmc = MCMC(kernel, num_warmup=num_warmup, num_samples=num_samples, **options)
        mcmc.run(jax.random.key(10_000 + number), *drawn.args)
        draws = {name: np.asarray(x, np.float64) for name, x in mcmc.get_samples(group_by_chain=True).items()}
        divergent = float(np.mean(mcmc.get_extra_fields(group_by_chain=True)["diverging"]))
        with np.errstate(divide="ignore", invalid="ignore"):  # scalars that never change
            table: Any = pd.DataFrame(summary(from_dict({"posterior": draws}), kind="all", round_to="none"))
        table = table[table["sd"] > 1e-6 * table["mean"].abs()]
        rhat, ess = table["r_hat"].max(), table[["ess_bulk", "ess_tail"]].min(axis=None)
        text = f"NUTS: r-hat {rhat:.3f}, ESS {ess:.0f}, {divergent:.1%} divergent, {time.perf_counter() - start:.0f} s"
        if rhat < MAX_RHAT and ess > LEAST_ESS and divergent <= MOST_DIVERGENT:
            return table, text
    return None, text


def compared(fit: Any, nuts: Any) -> Errors:
    """Of two tables by ArviZ."""
    fit = fit.loc[nuts.index]
    columns = ["mean", "sd", "mcse_mean", "mcse_sd"]
    both = np.isfinite(fit[columns]).all(axis=1)
    left_out = int((~both).sum())
    fit, nuts = fit[both].astype(float), nuts[both]
    mean, sd = (fit["mean"] - nuts["mean"]).abs() / nuts["sd"], (fit["sd"] / nuts["sd"] - 1).abs()
    noise = {name: np.hypot(fit[name], nuts[name]) / nuts["sd"] for name in ("mcse_mean", "mcse_sd")}
    wrong = (mean > MEAN_BOUND + ERRORS * noise["mcse_mean"]) | (sd > SD_BOUND + ERRORS * noise["mcse_sd"])
    names = ", ".join(fit.index[wrong])
    if fit.empty:
        return Errors(0.0, "", 0.0, "", "", left_out)
    return Errors(mean.max(), str(mean.idxmax()), sd.max(), str(sd.idxmax()), names, left_out)


def row(number: int, drawn: RandomModel, without_nuts: bool, refused_too: bool) -> dict[str, Any]:
    """One model's results; an exception is recorded as a crash."""
    values: dict[str, Any] = {"seed": number, "structure": drawn.structure, "dim": drawn.dim}
    values |= dict.fromkeys(("certified", "why", "seconds", "ess", "khat", "nan", "reference", "wrong", "errors"), "")
    start = time.perf_counter()
    try:
        posterior = FlowVI(drawn.model, progress_bar=False).run(jax.random.key(number), *drawn.args)
        values["seconds"] = f"{time.perf_counter() - start:.1f}"
        table = posterior.summary(kind="all", round_to="none")
        draws = posterior.sample(jax.random.key(1), 4_000)
        finite = np.isfinite(posterior.log_evidence) and all(np.isfinite(x).all() for x in draws.values())
    except Exception as error:  # a crash is a result, and the other models still count
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "numpyro_flows" in frame.filename]
        where = f"{frames[-1].filename.rpartition('numpyro_flows/')[2]}:{frames[-1].lineno}" if frames else "here"
        return values | {"certified": "crash", "why": f"{type(error).__name__} in {where}: {error}"[:500]}
    values |= {"certified": posterior.certified, "why": posterior.why, "nan": not finite}
    values |= {"ess": f"{posterior.ess:.3f}", "khat": f"{posterior.khat:.2f}"}
    if without_nuts or not (posterior.certified or refused_too):
        return values
    nuts, text = reference(drawn, number)
    if nuts is None:
        return values | {"reference": False, "errors": text}
    errors = compared(table, nuts)
    text = f"mean {errors.mean:.3f} sd ({errors.mean_of}), sd {errors.sd:.1%} ({errors.sd_of}), {text}"
    if errors.left_out:
        text += f", {errors.left_out} scalars left out"
    return values | {"reference": True, "wrong": errors.wrong, "errors": text}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=200)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--float32", action="store_true")
    parser.add_argument("--without-nuts", action="store_true")
    parser.add_argument("--refused-too", action="store_true", help="NUTS on refused models as well")
    parser.add_argument("--resume", action="store_true", help="only the models without a result")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", not options.float32)
    warnings.simplefilter("ignore", UserWarning)
    name = "random_models_float32" if options.float32 else "random_models"
    rows: list[dict[str, Any]] = [*read(name)] if options.resume else []
    done = {int(values["seed"]) for values in rows}
    for number in range(options.first, options.first + options.models):
        if number in done:
            continue
        values = row(number, random_model(number), options.without_nuts, options.refused_too)
        rows.append(values)
        rows.sort(key=lambda values: int(values["seed"]))
        write(name, rows)
        print("; ".join(f"{key} {value}" for key, value in values.items() if value != ""), flush=True)
        jax.clear_caches()
    report(rows)


def report(rows: list[dict[str, Any]]) -> None:
    certified = [values for values in rows if str(values["certified"]) == "True"]
    wrong = [values["seed"] for values in certified if values["wrong"]]
    seconds = [float(values["seconds"]) for values in rows if values["seconds"]]
    print(f"models {len(rows)}, crashes {sum(values['certified'] == 'crash' for values in rows)}")
    print(f"NaN {sum(str(values['nan']) == 'True' for values in rows)}, certified {len(certified)}")
    print(f"certified and wrong {len(wrong)} {wrong}")
    print(f"certified without a reference {sum(str(values['reference']) == 'False' for values in certified)}")
    print(f"median seconds {statistics.median(seconds) if seconds else float('nan'):.1f}")


if __name__ == "__main__":
    main()
