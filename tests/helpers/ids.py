"""Names of test cases that are the same in every process, as workers that share the tests need them."""


def by_name(value: object) -> str:
    """Return the names of the arguments that a case gives, the name of what has one, or the case itself."""
    return ",".join(value) if isinstance(value, dict) else getattr(value, "__name__", repr(value))
