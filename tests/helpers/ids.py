"""Names of test cases that are the same in every process, as workers that share the tests need them."""


def by_name(value: object) -> str:
    """Return the arguments that a case gives, but for tensors and generators, whose values have no name."""
    if not isinstance(value, dict):
        return getattr(value, "__name__", repr(value))
    plain = (bool, int, float, str, tuple, list)
    return ",".join(f"{name}={one!r}" if isinstance(one, plain) else name for name, one in value.items())
