"""How a posterior is shown: a card in notebooks, and ArviZ's plots."""

from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import xarray as xr
    from arviz_plots.plot_collection import PlotCollection

_GREEN, _RED = "#1a7f37", "#cf222e"


class Shown:
    """ArviZ's plots of resampled draws, and the verdict as HTML."""

    if TYPE_CHECKING:
        certified: bool

        def verdict(self) -> str: ...

        def to_datatree(self) -> "xr.DataTree": ...

    def plot_density(self, **kwargs: Any) -> "PlotCollection":
        """Marginal densities, with means and credible intervals; keywords go to `arviz_plots.plot_dist`."""
        import arviz_plots

        defaults: dict[str, Any] = {"figure_kwargs": {"layout": "constrained"}}  # otherwise titles of two lines are cut
        return arviz_plots.plot_dist(self.to_datatree(), **(defaults | kwargs))

    def plot_forest(self, **kwargs: Any) -> "PlotCollection":
        """Means and credible intervals of all scalars; keywords go to `arviz_plots.plot_forest`."""
        import arviz_plots

        return arviz_plots.plot_forest(self.to_datatree(), **{"combined": True, **kwargs})

    def plot_pair(self, **kwargs: Any) -> Any:
        """Scatter plots of all pairs of scalars; keywords (`var_names`, ...) go to `arviz_plots.plot_pair`."""
        import arviz_plots

        return arviz_plots.plot_pair(self.to_datatree(), **kwargs)

    def plot_predictive(self, **kwargs: Any) -> "PlotCollection":
        """The posterior predictive distribution beside the data; keywords go to `arviz_plots.plot_ppc_dist`.

        Raises:
            ValueError: if the model has no observed site that it can draw.
        """
        import arviz_plots

        tree = self.to_datatree()
        if "posterior_predictive" not in tree.children:
            raise ValueError("plot_predictive expected a model with an observed site that it can draw, got none")
        return arviz_plots.plot_ppc_dist(tree, **kwargs)

    def _repr_html_(self) -> str:
        first, *rest = escape(self.verdict()).split("\n")
        colour = _GREEN if self.certified else _RED
        lines = "<br>".join(rest)
        return (
            f'<div style="border-left: 4px solid {colour}; padding: 0.2em 0.8em">'
            f'<strong style="color: {colour}">{first}</strong><br><small>{lines}</small></div>'
        )
