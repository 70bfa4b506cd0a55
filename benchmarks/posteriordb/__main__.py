"""FlowVI, NUTS, NumPyro's guides and FlowJAX on 20 posteriors of posteriordb, against its reference draws.

    uv run --group benchmarks python -m benchmarks.posteriordb --database PATH [--only NAME ...] [--seeds N]
        [--methods METHOD ...] [--float32] [--output FILE] [--fresh]

PATH is a clone of posteriordb (the folder that holds `posterior_database`). FlowVI runs with every seed 0..N-1; NUTS
and the peers run once for each posterior, with seed 0, the peers with as many gradients as FlowVI took there. Nothing
compiled is kept from one run to the next: each pays for its own compilation, none for imports.

Finished rows are written at once; those that are there already are skipped unless --fresh. In the end a summary of all
rows of the file is printed and a picture is drawn.
"""

import argparse
import traceback
from pathlib import Path

import jax
import numpyro
import numpyro.distributions as dist

from benchmarks.posteriordb.methods import flow, nuts
from benchmarks.posteriordb.models import Posterior, load, names
from benchmarks.posteriordb.peers import PEERS
from benchmarks.posteriordb.report import draw_picture, line, summary
from benchmarks.posteriordb.scoring import Row
from benchmarks.posteriordb.table import Table, number
from benchmarks.results import FOLDER, clean_up

METHODS = ["flow", "nuts", *PEERS]
_GRADIENTS = 3_000 * 128  # of the peers where FlowVI has no row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", type=Path, required=True, help="a clone of posteriordb")
    parser.add_argument("--only", nargs="+", choices=names(), default=names(), metavar="NAME", help="posteriors")
    parser.add_argument("--seeds", type=int, default=1, help="of FlowVI; the other methods run with seed 0 only")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--float32", action="store_true", help="single precision in place of double")
    parser.add_argument("--output", type=Path, help="another CSV file; its picture goes beside it")
    parser.add_argument("--fresh", action="store_true", help="forget the rows that are there")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", not options.float32)
    jax.config.update("jax_enable_compilation_cache", False)
    stem = "posteriordb_float32" if options.float32 else "posteriordb"
    table = Table(options.output or FOLDER / f"{stem}.csv", options.fresh)
    picture = options.output.with_suffix(".png") if options.output else FOLDER.parent / "images" / f"{stem}.png"

    plan = [
        (name, method, seed)
        for name in options.only
        for method in METHODS
        for seed in range(options.seeds if method == "flow" else 1)
        if method in options.methods and table.find(name, method, seed) is None
    ]
    try:
        if plan:
            _warm_up()
        for name, method, seed in plan:
            clean_up()
            posterior = load(options.database, name)
            row = {"posterior": name, "method": method, "seed": seed}
            try:
                row |= _run(posterior, method, seed, table)
            except Exception as error:
                traceback.print_exc()
                row["error"] = f"{type(error).__name__}: {error}"
            print(line(table.append(row)), flush=True)
    except KeyboardInterrupt:
        print("interrupted: finished rows are kept")
    if table.rows:
        print(summary(table.rows))
        draw_picture(table.rows, picture)
        print(f"written to {table.path} and {picture}")


def _run(posterior: Posterior, method: str, seed: int, table: Table) -> Row:
    if method == "flow":
        return flow(posterior, seed)
    if method == "nuts":
        return nuts(posterior, seed)
    gradients = number(table.find(posterior.name, "flow", seed), "gradient_evaluations")
    return PEERS[method](posterior, seed, _GRADIENTS if gradients != gradients else int(gradients))


def _warm_up() -> None:
    """An untimed run, for imports and first-use set-up."""

    def model() -> None:
        numpyro.sample("x", dist.Normal(0, 1).expand([2]).to_event(1))

    draws = dist.Normal(0, 1).expand([2]).sample(jax.random.key(0), (10,))
    tiny = Posterior("tiny", model, (), {"x[1]": draws[:, 0], "x[2]": draws[:, 1]})
    flow(tiny, 0)
    nuts(tiny, 0)


if __name__ == "__main__":
    main()
