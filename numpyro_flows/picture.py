"""The figure that plots are drawn on."""

import io

from matplotlib.figure import Figure


class Picture(Figure):
    """A figure of matplotlib that a notebook shows by itself: without pyplot, which keeps every figure in memory."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=150)
        return buffer.getvalue()
