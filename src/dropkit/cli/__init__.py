"""The command line: a thin shell over the Python API."""

import sys
from importlib.util import find_spec

from dropkit._checks import require
from dropkit.errors import MissingDependencyError

__all__ = ["main"]

_PACKAGES = (  # of the extra `study`
    *("filelock", "jinja2", "matplotlib", "optuna", "polars", "rich", "safetensors", "scipy", "sklearn"),
    *("threadpoolctl", "typer"),
)


def main() -> None:
    """Run the `dropkit` command; without the packages of the extra `study`, say in one line how to install them."""
    for package in _PACKAGES:
        if find_spec(package) is None:
            try:
                require(package, "study", "The dropkit command")
            except MissingDependencyError as error:
                print(error, file=sys.stderr)
                sys.exit(2)
    from dropkit.cli.app import app

    app()
