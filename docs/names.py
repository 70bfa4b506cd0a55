"""Code names in prose: which names a piece of code mentions, of this library and of those in `inventory.csv`."""

import csv
import importlib
import inspect
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from numpyro_flows.inference.certificate import Certificate

PACKAGE = "numpyro_flows"
MODULES = ("flows", "bijections", "embeddings", "continuous", "gaussianization", "flow_plots")
OTHERS = (Certificate,)  # what public functions return

# usual variables: `posterior.why` is an attribute of the first of these classes that has it
VARIABLES = {
    "posterior": ("FlowPosterior", "AmortizedPosterior"),
    "certificate": ("Certificate",),
    "flow": ("FlowDistribution",),
    "guide": ("AutoFlow",),
    "fit": ("DensityFit", "MixedFit", "FewStepsFit", "LatentODEFit"),
    "comparison": ("NutsComparison",),
    "calibration": ("Calibration",),
    "amortized": ("AmortizedPosterior",),
    "many": ("ManyPosteriors",),
    "fits": ("ManyFits", "SeveralFits"),
    "chain": ("Chain",),
}
# Several classes have these names, or they are common words too. Prose means the entry on the right.
USUAL = {
    "run": "FlowVI.run",
    "why": "FlowPosterior.why",
    "certified": "FlowPosterior.certified",
    "khat": "FlowPosterior.khat",
    "summary": "FlowPosterior.summary",
    "print_summary": "FlowPosterior.print_summary",
    "log_evidence": "FlowPosterior.log_evidence",
    "gaussianization": "flows.gaussianization",
    "matrix_exponential": "flows.matrix_exponential",
    "given": "FlowDistribution.given",
    "sample_weighted": "FlowPosterior.sample_weighted",
    "sample_with_intermediates": "FlowDistribution.sample_with_intermediates",
    "log_prob_parts": "FlowDistribution.log_prob_parts",
    "transform_and_log_det": "bijections.AbstractBijection.transform_and_log_det",
    "inverse_and_log_det": "bijections.AbstractBijection.inverse_and_log_det",
}
# prose says `Trace_ELBO`, `dist.Normal` and `jnp.tanh`
PREFIXES = {
    "dist": "numpyro.distributions",
    "jnp": "jax.numpy",
    "az": "arviz",
    "arviz_base": "arviz",
    "arviz_plots": "arviz",
    "arviz_stats": "arviz",
    "handlers": "numpyro.handlers",
    "constraints": "numpyro.distributions.constraints",
    "distributions": "numpyro.distributions",
}
BARE = ("numpyro.infer", "numpyro.infer.autoguide", "numpyro.infer.reparam", "numpyro.contrib.module")
BARE += ("numpyro.contrib.einstein", "numpyro.distributions")

_DOTTED = re.compile(r"(?<![\w.\"'/-])[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*(?![\w\"'/=]|-\w|\s=[^=])")
_FILE = re.compile(r"[\w/*.]+\.(py|csv|md|png|npy)")
_CALLED = re.compile(r"\([^()]*\)\.([A-Za-z_]\w*)")


class Found(NamedTuple):
    """A name in a piece of code, from `start` to `end`: an `address`, or the full `name` of a thing of this library."""

    start: int
    end: int
    name: str
    address: str = ""


@cache
def inventory() -> dict[str, str]:
    """Addresses by name as prose writes it: in full, and for usual names of NumPyro alone."""
    with (Path(__file__).parent / "inventory.csv").open() as file:
        addresses = {row["name"]: row["address"] for row in csv.DictReader(file)}
    for module in BARE:
        for full, address in tuple(addresses.items()):
            if full.startswith(f"{module}."):
                name = full.removeprefix(f"{module}.")
                if "_" in name or name[0].isupper():
                    addresses.setdefault(name, address)
    return addresses


@cache
def public() -> dict[str, object]:
    """The public classes and functions, by the full name that users import."""
    things: dict[str, object] = {}
    for path in (PACKAGE, *(f"{PACKAGE}.{name}" for name in MODULES)):
        module = importlib.import_module(path)
        for name in dir(module):
            value = getattr(module, name)
            home = getattr(value, "__module__", None) or ""
            ours = home.startswith(f"{PACKAGE}.") if hasattr(module, "__path__") else home == path
            if ours and not name.startswith("_"):
                things[f"{path}.{name}"] = value
    return things | {f"{kind.__module__}.{kind.__name__}": kind for kind in OTHERS}


def members(kind: type) -> set[str]:
    """Methods and attributes of a class, also those that only its docstring names."""
    names = {name for name in dir(kind) if not name.startswith("_")}
    for base in kind.__mro__:
        names |= set(inspect.get_annotations(base))
    _, _, attributes = (kind.__doc__ or "").partition("Attributes:")
    names |= set(re.findall(r"^\s+(\w+):", attributes, flags=re.MULTILINE))
    return names


@cache
def index() -> dict[str, str]:
    """Full names by every ending that means one thing: `FlowVI.run`, `flows.nsf_coupling`, `run_many`."""
    endings: dict[str, set[str]] = {}
    for full, value in public().items():
        parts = full.removeprefix(f"{PACKAGE}.").split(".")
        for start in range(len(parts)):
            endings.setdefault(".".join(parts[start:]), set()).add(full)
        endings[full] = {full}
        if isinstance(value, type):
            for member in members(value):
                endings.setdefault(f"{parts[-1]}.{member}", set()).add(f"{full}.{member}")
                if "_" in member and callable(getattr(value, member, None)):
                    endings.setdefault(member, set()).add(f"{full}.{member}")
    for member in members(Certificate):  # a posterior has those of its certificate
        endings.setdefault(f"FlowPosterior.{member}", {f"{PACKAGE}.FlowPosterior.{member}"})
    names = {ending: next(iter(full)) for ending, full in endings.items() if len(full) == 1}
    names |= {name: names.get(usual, f"{PACKAGE}.{usual}") for name, usual in USUAL.items()}
    return names | {f"{PACKAGE}.{name}": f"{PACKAGE}.{name}" for name in MODULES}


def full_name(name: str) -> str | None:
    """The full name of a thing of this library, or of the longest beginning that is one."""
    if name in index():
        return index()[name]
    parts = name.removeprefix(f"{PACKAGE}.").split(".")
    for variable, kinds in VARIABLES.items():
        if parts[0] == variable and len(parts) > 1:
            parts = parts[1:] if parts[1] in VARIABLES and len(parts) > 2 else parts
            of = (index().get(f"{kind}.{parts[1]}") for kind in VARIABLES.get(parts[0], kinds))
            return next((full for full in of if full), None) or _of_fit(parts)
    for end in range(len(parts), 0, -1):
        if full := index().get(".".join(parts[:end])):
            return full
    return None


def _of_fit(parts: list[str]) -> str | None:
    return index()["DensityFit"] if parts == ["flow", "fit"] else None


def address(name: str) -> str | None:
    """The address of a thing of another library, or of the longest beginning that has one."""
    first, _, rest = name.partition(".")
    name = f"{PREFIXES[first]}.{rest}" if first in PREFIXES and rest else name
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        if found := inventory().get(".".join(parts[:end])):
            return found
    return None


def found(code: str, parameters: Iterable[str] = ()) -> Iterator[Found]:
    """The names in a piece of code that have an entry somewhere.

    A word without a capital, dot or underscore may be anything in an expression. So it counts only alone or called,
    and not where it is one of the `parameters` of what a docstring describes.
    """
    if _FILE.fullmatch(code):
        return
    for match in _DOTTED.finditer(code):
        name, end = match.group(), match.end()
        if name.islower() and "." not in name:  # perhaps a word
            alone = "_" in name or re.fullmatch(rf"{name}(\(.*\))?", code)
            if name in parameters or not alone:
                continue
        if full := full_name(name):
            yield Found(match.start(), end, full)
            called = _CALLED.match(code, end)
            if called and (member := index().get(f"{name}.{called.group(1)}")):
                yield Found(*called.span(1), member)
        elif link := address(name):
            yield Found(match.start(), end, name, link)
