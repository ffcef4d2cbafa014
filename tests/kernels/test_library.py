"""Which kernels serve, what chooses them, and what is said where they cannot: each in a fresh interpreter."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import dropkit
from dropkit import kernels, random
from dropkit.kernels.native import library
from dropkit.kernels.native.reinstall import reinstall_command
from tests.helpers.compiler import needs_compiler

KEY = 7
SAMPLE = f"""\
import json, sys, warnings
sys.path[:0] = json.loads(sys.argv[1])
import torch
from dropkit import functional, kernels, nn
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    torch.nn.Sequential(nn.Dropout(0.5))(torch.ones(4))  # line 7
    output = functional.dropout(torch.ones(100), 0.5, key={KEY})
about = kernels.info()
print(json.dumps({{
    "kernel": about.kernel,
    "reason": about.reason,
    "library": about.library and str(about.library),
    "kept": output.bool().tolist(),
    "said": [(str(warning.message), warning.filename, warning.lineno) for warning in caught],
}}))
"""
NUMPY_SAMPLE = f"""\
import json, sys, warnings
sys.path[:0] = json.loads(sys.argv[1])
import numpy as np
from dropkit import kernels
from dropkit.numpy import dropout_backward, dropout_forward
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    output, mask = dropout_forward(np.ones(100), 0.5, rng={KEY})  # line 8
    dropout_backward(output, mask, 0.5)
    first, had_torch = kernels.info(), "torch" in sys.modules
    import torch
    from dropkit import functional
    same = bool((functional.dropout(torch.ones(100), 0.5, key={KEY}).numpy() == output).all())
print(json.dumps({{
    "kernels": [first.kernel, kernels.info().kernel],
    "threads": [first.threads, kernels.info().threads],
    "had_torch": had_torch,
    "kept": mask.tolist(),
    "same": same,
    "said": [(str(warning.message), warning.filename, warning.lineno) for warning in caught],
}}))
"""
LIGHT_SAMPLE = f"""\
import json
import numpy as np
from dropkit import kernels
from dropkit.numpy import dropout_forward
_, mask = dropout_forward(np.ones(100), 0.5, rng={KEY})
about = kernels.info()
print(json.dumps({{
    "kernel": about.kernel,
    "reason": about.reason,
    "library": about.library and str(about.library),
    "kept": mask.tolist(),
}}))
"""  # for what does not depend on PyTorch, whose import takes ten times as long; a warning would be on stderr
PRESENT = [  # as PyTorch sees the processor, best first
    *(["avx512"] if torch.backends.cpu.get_cpu_capability() == "AVX512" else []),
    *(["avx2"] if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") else []),
    *(["neon"] if platform.machine() in ("aarch64", "arm64") else []),
    "scalar",
]
ABSENT = sorted({"avx512", "avx2", "neon"} - set(PRESENT))


@cache
def start(choice: str = "", folder: Path | None = None, sample: str = SAMPLE) -> subprocess.CompletedProcess[str]:
    """Run a sample with DROPKIT_KERNEL = `choice`, with the package in `folder` rather than the installed one."""
    environment = os.environ | {library.ENVIRONMENT: choice}
    options = ["-S"] if folder else []  # leaves the import hook of an editable install out
    paths = [str(folder), *sys.path] if folder else []
    command = [sys.executable, *options, "-c", sample, json.dumps(paths)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def outcome(choice: str = "", folder: Path | None = None, sample: str = SAMPLE) -> dict[str, Any]:
    """What a sample says; its mask must be right whatever serves."""
    result = start(choice, folder, sample)
    assert (result.returncode, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    assert found.pop("kept") == random.keep_mask(KEY, (100,), 0.5).tolist()
    return found


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder with dropkit as it is installed where there was no compiler."""
    leave = shutil.ignore_patterns("__pycache__", library._NAME)
    shutil.copytree(Path(dropkit.__file__).parent, tmp_path / "dropkit", ignore=leave)
    return tmp_path


@needs_compiler
def test_the_kernels_are_compiled_where_they_can_be() -> None:
    assert library._find() is not None, "`pip install --verbose --editable .` shows what the compiler said"


@pytest.mark.native
def test_the_best_instruction_set_serves() -> None:
    about = outcome()
    assert (about["kernel"], about["reason"]) == (PRESENT[0], "the best that this processor has")
    assert (about["library"], about["said"]) == (str(kernels.info().library), [])


@pytest.mark.native
@pytest.mark.parametrize("name", PRESENT)
def test_an_instruction_set_can_be_chosen(name: str) -> None:
    about = outcome(name, sample=LIGHT_SAMPLE)
    assert (about["kernel"], about["reason"]) == (name, f"DROPKIT_KERNEL={name}")


@pytest.mark.slow
@pytest.mark.native
@pytest.mark.parametrize("name", ABSENT)
def test_an_instruction_set_that_is_lacking_is_named_once_and_the_best_one_serves(name: str) -> None:
    about = outcome(name)
    message = f"DROPKIT_KERNEL={name}: this processor or build lacks it; {PRESENT[0]} serves."
    assert about["kernel"] == PRESENT[0]
    assert about["said"] == [[message, "<string>", 7]]


@pytest.mark.native
@pytest.mark.parametrize("choice", ["", "scalar"])
def test_numpy_runs_on_the_kernels_without_torch_and_shares_its_threads_from_when_it_is_imported(choice: str) -> None:
    about = outcome(choice, sample=NUMPY_SAMPLE)
    assert about == {
        "kernels": [choice or PRESENT[0]] * 2,
        "threads": ["one", kernels.info().threads],
        "had_torch": False,
        "same": True,
        "said": [],
    }


def test_numpy_without_the_kernels_needs_no_torch_either() -> None:
    about = outcome("portable", sample=NUMPY_SAMPLE)
    assert about == {
        "kernels": ["portable", "portable"],
        "threads": ["one", "PyTorch"],
        "had_torch": False,
        "same": True,
        "said": [],
    }


def test_without_the_library_numpy_says_once_how_to_get_it_and_torch_after_it_nothing(package: Path) -> None:
    about = outcome(folder=package, sample=NUMPY_SAMPLE)
    assert (about["kernels"], about["had_torch"]) == (["portable", "portable"], False)
    [(message, file, line)] = about["said"]
    assert (file, line) == ("<string>", 8)
    assert message.startswith("dropkit runs on portable operations of PyTorch and NumPy, slower")


def test_portable_operations_can_be_chosen_and_say_nothing() -> None:
    about = outcome("portable")
    assert about == {"kernel": "portable", "reason": "DROPKIT_KERNEL=portable", "library": None, "said": []}


@pytest.mark.parametrize("choice", [" Portable ", "PORTABLE\t"])
def test_case_and_blanks_of_a_choice_do_not_matter(choice: str) -> None:
    about = outcome(choice, sample=LIGHT_SAMPLE)
    assert (about["kernel"], about["reason"]) == ("portable", "DROPKIT_KERNEL=portable")


@pytest.mark.native
def test_a_blank_choice_is_none() -> None:
    assert outcome(" ", sample=LIGHT_SAMPLE)["reason"] == "the best that this processor has"


@pytest.mark.native
def test_on_a_cpu_the_choice_of_gpus_is_none() -> None:
    assert outcome("triton") | {"said": []} == outcome("") | {"said": []}


def test_an_unknown_choice_is_refused() -> None:
    result = start("fast", sample=LIGHT_SAMPLE)
    assert result.returncode == 1
    known = "'auto', 'portable', 'triton', 'avx512', 'avx2', 'neon', 'scalar'"
    message = f"dropkit.kernels: `DROPKIT_KERNEL` must be one of {known}, got 'fast' (str)."
    assert result.stderr.splitlines()[-1] == f"dropkit.errors.ArgumentError: {message}"


def test_without_the_library_portable_operations_serve_and_say_once_how_to_get_it(package: Path) -> None:
    about = outcome(folder=package)
    assert (about["kernel"], about["library"]) == ("portable", None)
    [(message, file, line)] = about["said"]
    assert (file, line) == ("<string>", 7)  # the user's line, past the layers of PyTorch and dropkit
    command = reinstall_command()
    where = " in a checkout of dropkit" if command.endswith(" .") else ""
    assert message == (
        "dropkit runs on portable operations of PyTorch and NumPy, slower than its compiled kernels: it was installed "
        f"without a C++ compiler. Install GCC or Clang, then run{where}:\n\n    {command}\n\n"
        "Or set DROPKIT_KERNEL=portable to silence this."
    )


@pytest.mark.parametrize(
    ("record", "source"),
    [
        (None, "--no-binary dropkit dropkit"),  # from an index
        ({"dir_info": {}, "url": "file:///a%20b/dropkit"}, "file:///a%20b/dropkit"),
        ({"dir_info": {"editable": True}, "url": "file:///dropkit"}, "--editable file:///dropkit"),
        ({"vcs_info": {"vcs": "git", "commit_id": "0a1b"}, "url": "https://host/x.git"}, "git+https://host/x.git@0a1b"),
        ({"archive_info": {}, "url": "file:///dropkit-1.0.tar.gz"}, "file:///dropkit-1.0.tar.gz"),
        ({"archive_info": {}, "url": "file:///dropkit-1.0-py3-none-any.whl"}, "."),
        ({"archive_info": {}, "url": "https://host/x.zip?a=1&b=2"}, "'https://host/x.zip?a=1&b=2'"),
    ],
)
def test_the_command_takes_dropkit_from_where_it_came(
    record: dict[str, Any] | None, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "dropkit-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: dropkit\nVersion: 1.0\n")
    if record:
        (folder / "direct_url.json").write_text(json.dumps(record))
    monkeypatch.syspath_prepend(tmp_path)
    assert (
        reinstall_command().partition(" -m pip ")[2] == f"install --force-reinstall --no-deps --no-cache-dir {source}"
    )


@pytest.mark.parametrize(
    ("has_pip", "pip"),
    [(True, "'/an environment/bin/python' -m pip"), (False, "pip --python '/an environment/bin/python'")],
)
def test_the_command_is_for_the_environment_of_this_interpreter(
    has_pip: bool, pip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if has_pip:
        (tmp_path / "pip.py").touch()
    monkeypatch.setattr(sys, "executable", "/an environment/bin/python")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert reinstall_command().startswith(f"{pip} install --force-reinstall ")


def test_hooks_of_imports_are_not_asked_for_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of setuptools would undo itself, and torch.compile fail to import setuptools."""
    asked = []

    class Hook:
        def find_spec(self, name: str, *_: object) -> None:
            asked.append(name)

    monkeypatch.setattr(sys, "meta_path", [Hook(), *sys.meta_path])
    reinstall_command()
    assert "pip" not in asked


def test_sources_that_were_never_installed_are_installed_from_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert reinstall_command().endswith(" --no-cache-dir .")


@pytest.mark.slow
def test_without_the_library_a_chosen_instruction_set_is_no_reason_for_silence(package: Path) -> None:
    about = outcome("scalar", package)
    assert about["kernel"] == "portable"
    assert len(about["said"]) == 1


def test_a_library_that_does_not_load_is_as_none_and_named(package: Path) -> None:
    broken = package / "dropkit" / "kernels" / "native" / library._NAME
    broken.touch()
    about = outcome(folder=package)
    assert (about["kernel"], about["library"]) == ("portable", str(broken))
    [(message, *_)] = about["said"]
    assert re.search(rf"the compiled library does not load: .*{re.escape(library._NAME)}", message)


def test_what_the_import_happens_under_changes_nothing() -> None:
    """A tensor is known as plain by marks that PyTorch gives others in inference, and fake ones under a fake mode."""
    code = """\
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
with torch.inference_mode(), FakeTensorMode():
    from dropkit.functional.dropout import dropout
    from dropkit.functional.eager import is_plain
    from dropkit.kernels.native.library import library
served = library() is not None
assert is_plain(torch.ones(3)) == served
with torch.inference_mode():
    assert is_plain(torch.ones(3)) == served
assert not is_plain(torch.ones(3, device="meta"))
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=100)
