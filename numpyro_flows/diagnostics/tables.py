"""The two tables of a comparison with NUTS; `NutsComparison` documents their columns."""

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

_ROUNDING = 1e-6  # an sd this small next to the mean is rounding: the scalar never changes
_METHOD_COLUMNS = (
    *("seconds", "compile_seconds", "gradient_evaluations", "draws", "min_ess_bulk", "min_ess_tail"),
    *("ess_per_second", "ess_per_second_compiling", "divergences", "max_rhat", "khat"),
)


def compare_sites(flow: "xr.Dataset", weights: Float[np.ndarray, " draws"], nuts: "xr.Dataset") -> "pd.DataFrame":
    """One row for each scalar, from the flow's draws with their normalised weights and from NUTS's draws."""
    import pandas as pd
    from arviz_stats.summary import summary
    from scipy.stats import wasserstein_distance

    with np.errstate(divide="ignore", invalid="ignore"):  # from ArviZ, for scalars that never change
        reference = pd.DataFrame(summary(nuts, round_to="none"))
    flow_scalars, nuts_scalars = _scalars(flow), _scalars(nuts)
    reference = reference.loc[list(flow_scalars)]
    nuts_mean, nuts_sd = reference["mean"].to_numpy(), reference["sd"].to_numpy()
    values = np.stack(list(flow_scalars.values()))
    mean = values @ weights
    squares = (values - mean[:, None]) ** 2
    sd = np.sqrt(squares @ weights)
    pooled = np.sqrt((sd**2 + nuts_sd**2) / 2)
    pooled = np.where(pooled > _ROUNDING * np.abs(mean), pooled, np.nan)
    mcse = np.hypot(np.sqrt(squares @ weights**2), reference["mcse_mean"])
    distances = [wasserstein_distance(flow_scalars[name], nuts_scalars[name], weights) for name in flow_scalars]
    unchanging = np.isnan(pooled)
    compared = {
        "difference_in_mcse": (mean - nuts_mean) / np.where(unchanging, np.nan, mcse),
        "difference_in_sd": (mean - nuts_mean) / pooled,
        "sd_ratio": sd / np.where(unchanging, np.nan, nuts_sd),
        "wasserstein": np.array(distances) / pooled,
        "nuts_ess_bulk": np.where(unchanging, np.nan, reference["ess_bulk"]),
        "nuts_ess_tail": np.where(unchanging, np.nan, reference["ess_tail"]),
        "nuts_rhat": np.where(unchanging, np.nan, reference["r_hat"]),
    }
    moments = {"flow_mean": mean, "nuts_mean": nuts_mean, "flow_sd": sd, "nuts_sd": nuts_sd}
    return pd.DataFrame(moments | compared, index=pd.Index(list(flow_scalars)))


def _scalars(dataset: "xr.Dataset") -> dict[str, Float[np.ndarray, " draws"]]:
    """The draws of all chains of each scalar, by ArviZ's label of it."""
    from arviz_base import xarray_var_iter
    from arviz_base.labels import BaseLabeller

    label = BaseLabeller().make_label_flat
    scalars = xarray_var_iter(dataset, skip_dims={"chain", "draw"})
    return {label(name, sel, isel): np.asarray(values, np.float64).ravel() for name, sel, isel, values in scalars}


def compare_methods(flow: dict[str, Any], nuts: dict[str, Any]) -> "pd.DataFrame":
    """One row for each method, from the figures it has; the rest is NaN."""
    import pandas as pd

    table = pd.DataFrame([flow, nuts], index=["flow", "NUTS"], columns=list(_METHOD_COLUMNS), dtype=float)
    table["ess_per_second"] = table["min_ess_bulk"] / table["seconds"]
    table["ess_per_second_compiling"] = table["min_ess_bulk"] / (table["seconds"] + table["compile_seconds"])
    return table
