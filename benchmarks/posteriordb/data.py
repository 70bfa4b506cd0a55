"""The files of posteriordb, and its data sets made into the arrays that a model takes."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

Data = dict[str, Any]  # a data set: arrays of floats, and single numbers


def read(database: Path, name: str) -> tuple[Data, dict[str, np.ndarray]]:
    """The data of the posterior `name` and its reference draws, all chains joined, by the names of Stan."""
    draws = _folder(database) / "reference_posteriors" / "draws" / "draws"
    chains = _unzip(draws / f"{_about(database, name)['reference_posterior_name']}.json.zip")
    reference = {site: np.concatenate([np.asarray(chain[site]) for chain in chains]) for site in chains[0]}
    return fields(database, name), reference


def fields(database: Path, name: str) -> Data:
    """The data of the posterior `name`, which may have no reference draws."""
    data = _unzip(_folder(database) / "data" / "data" / f"{_about(database, name)['data_name']}.json.zip")
    return {key: np.asarray(value, float) if np.ndim(value) else value for key, value in data.items()}


def _folder(database: Path) -> Path:
    return database / "posterior_database"


def _about(database: Path, name: str) -> Data:
    with open(_folder(database) / "posteriors" / f"{name}.json") as file:
        return json.load(file)


def _unzip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read(archive.namelist()[0]))


# The arguments of each model that takes more than the fields as they are. Regressions: predictors and response.


def earn_height(d: Data) -> tuple:
    return _with_ones(d["height"]), d["earn"]


def logearn_interaction(d: Data) -> tuple:
    return _with_ones(d["height"], d["male"], d["height"] * d["male"]), np.log(d["earn"])


def kidscore_momhsiq(d: Data) -> tuple:
    return _with_ones(d["mom_hs"], d["mom_iq"]), d["kid_score"]


def kidscore_interaction_c(d: Data) -> tuple:
    mom_hs, mom_iq = _centre(d["mom_hs"]), _centre(d["mom_iq"])
    return _with_ones(mom_hs, mom_iq, mom_hs * mom_iq), d["kid_score"]


def kidscore_mom_work(d: Data) -> tuple:
    return _with_ones(*(d["mom_work"] == work for work in (2, 3, 4))), d["kid_score"]


def mesquite(d: Data) -> tuple:
    predictors = ("diam1", "diam2", "canopy_height", "total_height", "density", "group")
    return _with_ones(*(d[name] for name in predictors)), d["weight"]


def logmesquite_logvas(d: Data) -> tuple:
    area = d["diam1"] * d["diam2"]
    positive = (area * d["canopy_height"], area, d["diam1"] / d["diam2"], d["total_height"], d["density"])
    return _with_ones(*(np.log(x) for x in positive), d["group"]), np.log(d["weight"])


def nes(d: Data) -> tuple:
    ages = (d["age_discrete"] == age for age in (2, 3, 4))
    return _with_ones(d["real_ideo"], d["race_adj"], *ages, d["educ1"], d["gender"], d["income"]), d["partyid7"]


def autoregression(d: Data) -> tuple:
    lags, y = d["K"], d["y"]
    return np.stack([y[lags - k : -k] for k in range(1, lags + 1)], axis=1), y[lags:]


def diamonds(d: Data) -> tuple:
    return _centre(d["X"][:, 1:]), d["Y"]


def _with_ones(*columns: np.ndarray) -> np.ndarray:
    return np.stack([np.ones(len(columns[0])), *columns], axis=1).astype(float)


def _centre(x: np.ndarray) -> np.ndarray:
    return x - x.mean(axis=0)
