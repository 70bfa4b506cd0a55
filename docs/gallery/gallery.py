"""Runs an example as its user would, in a folder of its own, and shows what it printed and drew."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from IPython.display import Image, display

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str) -> None:
    """Shows the output of `examples/NAME.py`."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, EXAMPLES / f"{name}.py"],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(EXAMPLES.parent), "MPLBACKEND": "Agg"},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"examples/{name}.py failed:\n{done.stderr}")
        print(done.stdout)
        for picture in sorted(Path(folder).glob("*.png")):
            display(Image(filename=str(picture)))
