"""The exceptions that dropkit raises, one class for each kind of mistake."""

__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "DataError",
    "DropkitError",
    "MissingDependencyError",
    "RunError",
    "UnavailableError",
    "UnsupportedError",
]


class DropkitError(Exception):
    """Base of every exception that dropkit raises on purpose."""


class ArgumentError(DropkitError, ValueError):
    """An argument has a value that is not accepted."""


class ArgumentTypeError(DropkitError, TypeError):
    """An argument has a type that is not accepted."""


class DataError(DropkitError, ValueError):
    """A data source is missing, damaged or unfit for what was asked of it."""


class RunError(DropkitError, RuntimeError):
    """A study's run directory cannot be created, read or continued."""


class UnavailableError(DropkitError, AttributeError):
    """A result does not have what was asked of it."""


class UnsupportedError(DropkitError, RuntimeError):
    """A combination of features that dropkit does not support."""


class MissingDependencyError(DropkitError, ModuleNotFoundError):
    """An optional package is needed and not installed."""
