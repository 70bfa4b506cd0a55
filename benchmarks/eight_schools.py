"""The eight schools: FlowVI's defaults against reference draws, and its seconds against NUTS's.

    uv run --group benchmarks python -m benchmarks.eight_schools --database PATH [--repeats 3]

`PATH` is a clone of posteriordb (the folder that holds `posterior_database`). Every timing runs in its own process,
from before the imports to 4,000 draws of all sites; flow and NUTS (4 x (1000 + 1000), vectorised) take turns.
"""

import time

START = time.perf_counter()  # before the imports that are timed

import argparse  # noqa: E402
import json  # noqa: E402
import statistics  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import zipfile  # noqa: E402
from pathlib import Path  # noqa: E402

REFERENCE = "posterior_database/reference_posteriors/draws/draws/eight_schools-eight_schools_noncentered.json.zip"


def flow(centred: bool, seed: int) -> dict:
    import jax

    from numpyro_flows import FlowVI
    from tests import example_models as models

    imported = time.perf_counter()
    model = models.eight_schools_centred if centred else models.eight_schools
    posterior = FlowVI(model, progress_bar=False).run(jax.random.key(seed))
    draws = jax.block_until_ready(posterior.sample(jax.random.key(seed + 1), 4000))
    end = time.perf_counter()
    sites = {"mu": draws["mu"], "tau": draws["tau"]} | {f"theta[{i + 1}]": draws["theta"][:, i] for i in range(8)}
    return {
        "seconds": end - START,
        "seconds_after_import": end - imported,
        "certified": posterior.certified,
        "khat": posterior.khat,
        "ess": posterior.ess,
        "moments": {name: [float(value.mean()), float(value.std())] for name, value in sites.items()},
    }


def nuts(seed: int) -> dict:
    import jax
    from numpyro.infer import MCMC, NUTS

    from tests.example_models import eight_schools

    imported = time.perf_counter()
    kernel = NUTS(eight_schools)
    mcmc = MCMC(kernel, num_warmup=1000, num_samples=1000, num_chains=4, chain_method="vectorized", progress_bar=False)
    mcmc.run(jax.random.key(seed))
    jax.block_until_ready(mcmc.get_samples())
    end = time.perf_counter()
    return {"seconds": end - START, "seconds_after_import": end - imported}


def reference_moments(database: Path) -> dict[str, tuple[float, float]]:
    import numpy as np

    with zipfile.ZipFile(database / REFERENCE) as archive:
        chains = json.loads(archive.read(archive.namelist()[0]))
    draws = {name: np.concatenate([np.asarray(chain[name]) for chain in chains]) for name in chains[0]}
    return {name: (float(value.mean()), float(value.std())) for name, value in draws.items()}


def worker(*arguments: str) -> dict:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.eight_schools", "--worker", *arguments]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--worker", nargs=2, metavar=("METHOD", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        method, seed = options.worker
        print(json.dumps(nuts(int(seed)) if method == "nuts" else flow(method == "centred", int(seed))))
        return
    if options.database is None:
        parser.error("--database PATH expected, a clone of posteriordb")

    from benchmarks.results import save

    reference = reference_moments(options.database)
    rows, ours, theirs = [], [], []
    for seed in range(options.repeats):
        fit, chains, centred = worker("plain", str(seed)), worker("nuts", str(seed)), worker("centred", str(seed))
        ours.append(fit)
        theirs.append(chains)
        for name, result in (("non-centred", fit), ("centred", centred)):
            moments = {site: result["moments"][site] for site in reference}
            rows.append(
                {
                    "model": name,
                    "seed": seed,
                    "certified": result["certified"],
                    "khat": f"{result['khat']:.2f}",
                    "ess": f"{result['ess']:.3f}",
                    "worst_mean_error_in_sd": f"{_worst_mean(moments, reference):.3f}",
                    "worst_sd_error": f"{_worst_sd(moments, reference):.3f}",
                    "seconds": f"{result['seconds']:.2f}",
                    "seconds_after_import": f"{result['seconds_after_import']:.2f}",
                    "nuts_seconds": f"{chains['seconds']:.2f}" if result is fit else "",
                    "nuts_seconds_after_import": f"{chains['seconds_after_import']:.2f}" if result is fit else "",
                }
            )
    save("eight_schools", rows)
    for key in ("seconds", "seconds_after_import"):
        a, b = statistics.median(r[key] for r in ours), statistics.median(r[key] for r in theirs)
        print(f"{key}: flow {a:.2f}, NUTS {b:.2f}, ratio {a / b:.2f}")


def _worst_mean(moments: dict, reference: dict) -> float:
    return max(abs(moments[s][0] - mean) / sd for s, (mean, sd) in reference.items())


def _worst_sd(moments: dict, reference: dict) -> float:
    return max(abs(moments[s][1] / sd - 1) for s, (_, sd) in reference.items())


if __name__ == "__main__":
    main()
