"""The methods by name, with their names and colours in the report and the picture.

Nothing here needs the rivals' packages until a method runs, so the site can read the names without them.
"""

from collections.abc import Callable
from functools import partial

from benchmarks.posteriordb.models import Posterior
from benchmarks.posteriordb.scoring import Row

# method -> name, colour, marker; the colours are those of Okabe and Ito, which colour-blind readers tell apart
STYLES = {
    "flow": ("FlowVI", "#0072B2", "o"),
    "nuts": ("NumPyro NUTS", "#D55E00", "D"),
    "nutpie": ("nutpie, diagonal", "#E69F00", "s"),
    "nutpie_low_rank": ("nutpie, low rank", "#009E73", "^"),
    "pathfinder": ("BlackJAX Pathfinder", "#CC79A7", "v"),
    "mclmc": ("BlackJAX MCLMC", "#56B4E9", "P"),
    "advi": ("PyMC ADVI", "#999999", "X"),
    "fullrank_advi": ("PyMC full-rank ADVI", "#000000", "*"),
}


def runner(method: str) -> Callable[[Posterior, int], Row]:
    """The function that runs a method with a seed."""
    from benchmarks.rivals import chains, fits

    return {
        "flow": fits.flow,
        "nuts": chains.nuts,
        "nutpie": partial(chains.nutpie_nuts, adaptation="diag"),
        "nutpie_low_rank": partial(chains.nutpie_nuts, adaptation="low_rank"),
        "pathfinder": fits.multi_path_pathfinder,
        "mclmc": chains.mclmc,
        "advi": partial(fits.advi, method="advi"),
        "fullrank_advi": partial(fits.advi, method="fullrank_advi"),
    }[method]
