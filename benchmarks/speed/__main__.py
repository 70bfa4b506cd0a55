"""Seconds, evaluations and memory of FlowVI on simulated data, compared with NUTS.

    uv run --group benchmarks python -m benchmarks.speed second | large | hard | many | memory | rows

- second: five data sets of equal shapes, one after the other: seconds of the later ones over the first's.
- large: logistic regressions with many rows, compared with NUTS. `--huge` has 1,000,000 x 50, which takes half an hour.
- hard: hierarchical counts, centred and not, a funnel of 101 dimensions and a sparse regression of 51.
- many: 200 data sets of an eight-schools model by `run_many`, and NUTS on each of the first 20.
- memory: 100 fits of different models in one process.
- rows: a logistic regression with rows in a file, read in blocks, compared with one that has them in memory.

All fits are in double precision. FlowVI's seconds include compilation unless a column says otherwise; for NUTS it is
separate. Each case writes docs/benchmarks/speed_CASE.csv.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from arviz_stats.base.array import array_stats
from numpyro.infer.hmc import hmc
from numpyro.infer.util import initialize_model
from numpyro.util import fori_collect

from benchmarks.results import save
from benchmarks.speed import models
from benchmarks.speed.rows import rows
from numpyro_flows import FlowPosterior, FlowVI
from numpyro_flows.diagnostics.timed_nuts import run_nuts

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=list(CASES))
    parser.add_argument("--huge", action="store_true", help="also 1,000,000 x 50")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_enable_compilation_cache", False)
    warnings.filterwarnings("ignore", message="the fit is not certified")
    _fit(models.of_shape(0)[0], models.of_shape(0)[1], 0)  # first-use set-up
    save(f"speed_{options.case}", large(options.huge) if options.case == "large" else CASES[options.case]())


def second() -> list[Row]:
    """The first of five runs, and the median of the others."""
    data = models.schools_data(5)
    cases = {
        "regression": (models.regression, [models.regression_data(seed) for seed in range(5)]),
        "eight schools": (models.schools, [(jnp.asarray(y), jnp.asarray(models.SIGMA)) for y in data]),
    }
    rows = []
    for name, (model, data_sets) in cases.items():
        seconds, compiled, posterior = [], [], None
        for seed, args in enumerate(data_sets):
            with _Compilations() as compilations:
                took, posterior = _fit(model, args, seed)
            seconds.append(took)
            compiled.append(compilations.num)
        later = statistics.median(seconds[1:])
        rows.append(
            {
                "model": name,
                "by": posterior and _by(posterior),
                "first_seconds": f"{seconds[0]:.2f}",
                "later_seconds": f"{later:.2f}",
                "ratio": f"{later / seconds[0]:.2f}",
                "first_compiled": compiled[0],
                "later_compiled": max(compiled[1:]),
            }
        )
    return rows


def large(huge: bool) -> list[Row]:
    sizes = [(100_000, 10, 1000, 4), *([(1_000_000, 50, 300, 1)] if huge else [])]
    rows = []
    for num_rows, columns, num, chains in sizes:
        args = models.logistic_data(num_rows, columns)
        row = _beside_nuts(models.logistic, args, num, chains)
        rows.append({"rows": num_rows, "columns": columns, "nuts": f"{chains} x ({num} + {num})", **row})
    return rows


def hard() -> list[Row]:
    cases: dict[str, tuple[Callable, models.Data]] = {
        "counts, centred": (models.counts(centred=True), models.counts_data()),
        "counts, not centred": (models.counts(centred=False), models.counts_data()),
        "funnel of 101 dimensions": (models.funnel, ()),
        "sparse logistic, 51 dimensions": (models.sparse, models.sparse_data()),
    }
    return [{"model": name, **_beside_nuts(model, args, 1000, 4)} for name, (model, args) in cases.items()]


def many(num: int = 200, num_nuts: int = 20) -> list[Row]:
    """Seconds for each data set: of NUTS the median, without the first, which compiles."""
    data = models.schools_data(num)
    model = FlowVI(models.schools, progress_bar=False)
    start = time.perf_counter()
    fits = model.run_many(jax.random.key(0), data, models.SIGMA, in_axes=(0, None))
    of_flow = (time.perf_counter() - start) / num
    effective = np.mean([p.log_weights.size * p.ess for p in fits.posteriors if p is not None])
    keys = jax.random.split(jax.random.key(0), num)
    alone = [model.run(keys[i], jnp.asarray(data[i]), jnp.asarray(models.SIGMA)) for i in range(0, num, num // 10)]
    same = sum(p.certificate == fits.posteriors[i * (num // 10)].certificate for i, p in enumerate(alone))  # pyright: ignore[reportOptionalMemberAccess]

    nuts = _nuts_of(models.schools, jnp.asarray(data[0]), jnp.asarray(models.SIGMA))
    seconds, ess = [], []
    for key, y in zip(keys, data[: num_nuts + 1]):
        start = time.perf_counter()
        draws = jax.block_until_ready(nuts(key, jnp.asarray(y), jnp.asarray(models.SIGMA)))
        seconds.append(time.perf_counter() - start)
        ess.append(_min_ess(draws))
    of_nuts, ess_nuts = statistics.median(seconds[1:]), statistics.median(ess[1:])
    return [
        {
            "data_sets": num,
            "certified": int(fits.certified.sum()),
            "same_verdict_alone": f"{same} of {len(alone)}",
            "seconds_each": f"{of_flow:.3f}",
            "effective_draws": f"{effective:.0f}",
            "nuts_seconds_each": f"{of_nuts:.3f}",
            "nuts_effective_draws": f"{ess_nuts:.0f}",
            "data_sets_per_second_over_nuts": f"{of_nuts / of_flow:.2f}",
            "effective_draws_per_second_over_nuts": f"{effective / of_flow / (ess_nuts / of_nuts):.2f}",
        }
    ]


def memory(num: int = 100) -> list[Row]:
    rows = []
    for number in range(num):
        model, args = models.of_shape(number)
        seconds, posterior = _fit(model, args, number)
        posterior.sample(jax.random.key(0), 100)
        megabytes = int(Path("/proc/self/statm").read_text().split()[1]) * 4 / 1024
        maps = len(Path("/proc/self/maps").read_text().splitlines())
        rows.append({"fits": number + 1, "megabytes": round(megabytes), "maps": maps, "seconds": f"{seconds:.2f}"})
    return rows


CASES: dict[str, Callable] = {
    "second": second,
    "large": large,
    "hard": hard,
    "many": many,
    "memory": memory,
    "rows": rows,
}


def _fit(model: Callable, args: models.Data, seed: int) -> tuple[float, FlowPosterior]:
    start = time.perf_counter()
    posterior = FlowVI(model, progress_bar=False).run(jax.random.key(seed), *args)
    return time.perf_counter() - start, posterior


def _beside_nuts(model: Callable, args: models.Data, num: int, chains: int) -> Row:
    seconds, posterior = _fit(model, args, 0)
    compiling = sum(posterior.seconds[stage] for stage in ("tracing", "compilation"))
    gradients = sum(posterior.gradient_evaluations.values())
    run = run_nuts(
        model, args, {}, jax.random.key(0), num_warmup=num, num_samples=num, num_chains=chains, progress_bar=False
    )
    ess = _min_ess({name: x.reshape(chains, num, -1) for name, x in run.latents.items()})
    return {
        "certified": posterior.certified,
        "by": _by(posterior),
        "ess": f"{posterior.ess:.3f}",
        "seconds": f"{seconds:.1f}",
        "seconds_compiling": f"{compiling:.1f}",
        "gradients": gradients,
        "values": sum(posterior.value_evaluations.values()),
        "nuts_seconds": f"{run.seconds:.1f}",
        "nuts_seconds_compiling": f"{run.compile_seconds:.1f}",
        "nuts_gradients": run.gradient_evaluations,
        "nuts_min_ess": f"{ess:.0f}",
        "seconds_over_nuts": f"{(seconds - compiling) / run.seconds:.2f}",
        "why": posterior.why[:150],
    }


def _nuts_of(model: Callable, *like: jax.Array) -> Callable[..., dict[str, jax.Array]]:
    """NUTS with NumPyro's defaults, 4 x (1000 + 1000), compiled once for data like these."""
    found = initialize_model(jax.random.key(0), model, dynamic_args=True, model_args=like)
    init, step = hmc(potential_fn_gen=found.potential_fn, algo="NUTS")

    @jax.jit
    def run(key: jax.Array, *args: jax.Array) -> dict[str, jax.Array]:
        def chain(key: jax.Array) -> Any:
            state = init(found.param_info, num_warmup=1000, model_args=args, rng_key=key)
            return fori_collect(
                1000, 2000, lambda state: step(state, args), state, transform=lambda state: state.z, progbar=False
            )

        return jax.vmap(chain)(jax.random.split(key, 4))

    return run


def _by(posterior: FlowPosterior) -> str:
    if posterior.chains is not None:
        return "a mixture" if posterior.certificate.by == "weights" else "Markov chains"
    return "a flow" if posterior.losses.size else "a Gaussian"


def _min_ess(draws: dict[str, Any]) -> float:
    """The smallest bulk ESS of any scalar, of draws `(chains, draws, *site)`."""
    scalars = [np.asarray(x).reshape(*x.shape[:2], -1) for x in draws.values()]
    columns = np.concatenate(scalars, axis=2)
    return min(float(np.asarray(array_stats.ess(columns[:, :, i]))) for i in range(columns.shape[2]))


class _Compilations:
    """Counts what is compiled ahead while it is open."""

    def __enter__(self) -> "_Compilations":
        self.num = 0
        self._compile = jax.stages.Lowered.compile

        def counted(lowered: jax.stages.Lowered, *args: Any) -> jax.stages.Compiled:
            self.num += 1
            return self._compile(lowered, *args)

        setattr(jax.stages.Lowered, "compile", counted)  # noqa: B010 - a type checker minds another signature
        return self

    def __exit__(self, *exception: object) -> None:
        setattr(jax.stages.Lowered, "compile", self._compile)  # noqa: B010


if __name__ == "__main__":
    main()
