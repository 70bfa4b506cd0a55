"""FlowVI and NUTS on one posterior, each as a row of the table."""

import time
import warnings

import jax
import numpy as np
from arviz_stats.base.array import array_stats

from benchmarks.posteriordb.models import Posterior, flatten
from benchmarks.posteriordb.scoring import NUM_DRAWS, Row, errors, score_weighted
from numpyro_flows import FlowPosterior, FlowVI
from numpyro_flows.diagnostics.timed_nuts import run_nuts
from numpyro_flows.inference.target import Target

NUTS_SETTINGS = {"num_warmup": 1000, "num_samples": 1000, "num_chains": 4}


def timed_fit(posterior: Posterior, seed: int) -> tuple[FlowPosterior, float]:
    """A fit by FlowVI's defaults, and its seconds."""
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the fit is not certified")
        fit = FlowVI(posterior.model, progress_bar=False).run(jax.random.key(seed), *posterior.args)
    seconds = time.perf_counter() - start
    if fit.reason == "interrupted":  # Ctrl-C ends FlowVI's training only
        raise KeyboardInterrupt
    return fit, seconds


def flow(posterior: Posterior, seed: int) -> Row:
    """FlowVI's defaults.

    The verdict is its own, as its user sees it. Errors use fresh draws, whose k-hat and ESS are `fresh_khat` and
    `fresh_ess`.
    """
    fit, seconds = timed_fit(posterior, seed)
    row = score_weighted(fit.sample_weighted, posterior.reference, jax.random.key(seed + 1000), seconds, fit.certified)
    own = {name: value for name, value in fit.certificate._asdict().items() if name in row}
    return {
        **row,
        **own,
        "fresh_khat": row["khat"],
        "fresh_ess": row["ess"],
        "seconds": seconds,
        "compile_seconds": sum(fit.seconds.get(stage, 0.0) for stage in ("tracing", "compilation")),
        "gradient_evaluations": sum(fit.gradient_evaluations.values()),
        "value_evaluations": sum(fit.value_evaluations.values()),
        **{f"seconds_{stage}": value for stage, value in fit.seconds.items()},
        "num_skipped": fit.num_skipped,
        "by": fit.certificate.by if fit.chains is None else f"mixture or chains, {fit.certificate.by}",
        "why": fit.why,
    }


def nuts(posterior: Posterior, seed: int) -> Row:
    """NumPyro's NUTS with its defaults, 4 vectorised chains; `min_ess` is the smallest bulk ESS of all scalars.

    `seconds_to_10000` has compilation and warm-up once, and sampling for 10,000 effective draws.
    """
    run = run_nuts(posterior.model, posterior.args, {}, jax.random.key(seed), **NUTS_SETTINGS, progress_bar=False)
    target = Target(posterior.model, jax.random.key(0), posterior.args)
    num_draws = run.stats["lp"].size
    x = np.concatenate([run.latents[name].reshape(num_draws, -1) for name in target.shapes], axis=1)
    scalars = flatten(jax.jit(jax.vmap(target.constrain))(x))
    chains = NUTS_SETTINGS["num_chains"]
    min_ess = min(
        float(np.asarray(array_stats.ess(draws.reshape(chains, -1).astype(float)))) for draws in scalars.values()
    )
    mean_error, sd_error = errors(scalars, posterior.reference)
    before = run.compile_seconds + run.warmup_seconds
    return {
        "mean_error": mean_error,
        "sd_error": sd_error,
        "seconds": run.compile_seconds + run.seconds,
        "compile_seconds": run.compile_seconds,
        "gradient_evaluations": run.gradient_evaluations,
        "seconds_to_10000": before + (run.seconds - run.warmup_seconds) * NUM_DRAWS / min_ess,
        "nuts_warmup_seconds": run.warmup_seconds,
        "min_ess": min_ess,
        "divergences": int(run.stats["diverging"].sum()),
    }
