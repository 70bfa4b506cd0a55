"""FlowVI beside today's samplers and approximations on 20 posteriors of posteriordb: gradients, seconds, errors.

    uv run --group rivals python -m benchmarks.rivals --database PATH [--only NAME ...] [--seeds N]
        [--methods METHOD ...] [--output FILE] [--fresh]

PATH is a clone of posteriordb (the folder that holds `posterior_database`). All methods have the same density, that of
the NumPyro model on its unconstrained space in double precision, and their own defaults; `chains.py` and `fits.py` say
what else was chosen. PyMC has the density as a JAX operation. Nothing compiled is kept from one run to the next.

Finished rows are written at once; those that are there already are skipped. With --fresh the chosen ones run again:
`--methods flow --fresh` replaces FlowVI's rows only. In the end a summary of all rows of the file is printed and
written beside it, and a picture is drawn.
"""

import argparse
import traceback
from importlib.metadata import version
from pathlib import Path

import jax
import numpyro
import numpyro.distributions as dist

from benchmarks.posteriordb.models import Posterior, load, names
from benchmarks.posteriordb.table import Table
from benchmarks.results import FOLDER, clean_up, machine
from benchmarks.rivals.methods import STYLES, runner
from benchmarks.rivals.picture import draw_picture
from benchmarks.rivals.report import line, summary, write_summary

_PACKAGES = ("nutpie", "blackjax", "pymc")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", type=Path, required=True, help="a clone of posteriordb")
    parser.add_argument("--only", nargs="+", choices=names(), default=names(), metavar="NAME", help="posteriors")
    parser.add_argument("--seeds", type=int, default=1, help="of every method")
    parser.add_argument("--methods", nargs="+", choices=STYLES, default=list(STYLES))
    parser.add_argument("--output", type=Path, help="another CSV file; summary and picture go beside it")
    parser.add_argument("--fresh", action="store_true", help="run again the rows that are in the file")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_enable_compilation_cache", False)
    table = Table(options.output or FOLDER / "rivals.csv")
    picture = options.output.with_suffix(".png") if options.output else FOLDER.parent / "images" / "rivals.png"
    versions = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)

    plan = [
        (name, method, seed)
        for name in options.only
        for method in STYLES
        for seed in range(options.seeds)
        if method in options.methods and (options.fresh or table.find(name, method, seed) is None)
    ]
    try:
        for method in dict.fromkeys(method for _, method, _ in plan):
            _warm_up(method)
        for name, method, seed in plan:
            clean_up()
            row = {"posterior": name, "method": method, "seed": seed}
            try:
                row |= runner(method)(load(options.database, name), seed)
            except Exception as error:
                traceback.print_exc()
                row["error"] = f"{type(error).__name__}: {error}"
            table.comments += [text for text in (f"# {machine()}", f"# {versions}") if text not in table.comments]
            print(line(table.append(row)), flush=True)
    except KeyboardInterrupt:
        print("interrupted: finished rows are kept")
    if table.rows:
        rows = summary(table.rows)
        beside = table.path.with_name(f"{table.path.stem}_summary.csv")
        write_summary(beside, rows)
        draw_picture(table.rows, picture)
        print(f"written to {table.path}, {beside} and {picture}")


def _warm_up(method: str) -> None:
    """An untimed run, for imports and first-use set-up."""

    def model() -> None:
        numpyro.sample("x", dist.Normal(0, 1).expand([2]).to_event(1))

    draws = dist.Normal(0, 1).expand([2]).sample(jax.random.key(0), (10,))
    runner(method)(Posterior("tiny", model, (), {"x[1]": draws[:, 0], "x[2]": draws[:, 1]}), 0)


if __name__ == "__main__":
    main()
