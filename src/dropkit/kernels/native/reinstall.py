"""The command that installs dropkit again from where it came, so that its kernels are compiled."""

import json
import shlex
import sys
from importlib import metadata
from importlib.machinery import PathFinder

__all__ = ["place_to_run", "reinstall_command"]


def reinstall_command() -> str:
    """Return a line for a shell, for the environment of this interpreter whether it is active or not.

    Where sources are not known, as of a wheel, it is for a checkout of them.
    """
    return f"{_pip()} install --force-reinstall --no-deps --no-cache-dir {_source()}"


def place_to_run(command: str) -> str:
    """Return the end of a sentence that says where such a command is to be run, empty if anywhere."""
    return " in a checkout of dropkit" if command.endswith(" .") else ""


def _pip() -> str:
    interpreter = shlex.quote(sys.executable)
    # `util.find_spec` asks hooks too; asked for pip, that of setuptools undoes itself before Python 3.12, after which
    # setuptools, and with it torch.compile, cannot be imported.
    return f"{interpreter} -m pip" if PathFinder.find_spec("pip") else f"pip --python {interpreter}"


def _source() -> str:
    """Return what dropkit was installed from, as pip takes it; installers record it (PEP 610)."""
    try:
        recorded = metadata.distribution("dropkit").read_text("direct_url.json")
    except metadata.PackageNotFoundError:  # imported from sources that were never installed
        return "."
    if not recorded:  # an index of packages, which may have a wheel
        return "--no-binary dropkit dropkit"
    found = json.loads(recorded)
    url, version = found["url"], found.get("vcs_info")
    if url.endswith(".whl"):
        return "."
    if version:
        url = f"{version['vcs']}+{url}@{version['commit_id']}"
    option = "--editable " if found.get("dir_info", {}).get("editable") else ""
    return option + shlex.quote(url)
