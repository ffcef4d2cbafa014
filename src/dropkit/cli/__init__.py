"""The command line: a thin shell over the Python API."""

import sys

from dropkit._checks import require
from dropkit.errors import MissingDependencyError

__all__ = ["main"]

_PACKAGES = ("typer", "rich", "optuna", "sklearn", "scipy", "matplotlib", "jinja2")


def main() -> None:
    """Run the `dropkit` command; without the packages of the extra `study`, say in one line how to install them."""
    try:
        for package in _PACKAGES:
            require(package, "study", "The dropkit command")
    except MissingDependencyError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    from dropkit.cli.app import app

    app()
