"""Installation: a wheel and an editable install carry configs, assets and templates everywhere."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BUILD = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "-q"]

# Prints where the package and its config come from, and one field that an override has changed.
PROGRAM = """
import trim_jax
from importlib import resources
from trim_jax.config import load_config, load_module
module = load_module("sweep")
print(trim_jax.__file__)
print(module.__file__)
print(load_config("sweep", ["--config.policy.threshold=0.25"]).policy.threshold)
print(resources.files("trim_jax") / "assets" / "tokenizer" / "tokenizer.json")
"""

pytestmark = pytest.mark.skipif(
    not (importlib.util.find_spec("pip") and importlib.util.find_spec("setuptools")),
    reason="building a wheel needs pip and setuptools in this environment")


def pip(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def run_elsewhere(folder: Path, site: Path) -> list[str]:
    """Output lines of PROGRAM in a new folder, with `site` as the only place that has trim_jax.

    `-S` keeps out whatever installation of trim_jax this environment itself has; its third-party
    packages come back as plain folders, behind `site`.
    """
    folder.mkdir()
    packages = [p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]
    path = os.pathsep.join([str(site), *packages])
    program = f"import site; site.addsitedir({str(site)!r})" + PROGRAM
    done = subprocess.run([sys.executable, "-S", "-c", program], cwd=folder,
                          env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy to build in: a build leaves folders behind, which must not mask a missing file."""
    copy = tmp_path_factory.mktemp("checkout")
    shutil.copy(ROOT / "setup.py", copy)
    for name in ("trim_jax", "configs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    pip("wheel", *BUILD, "--wheel-dir", str(out), str(checkout))
    return next(out.glob("trim_jax-*.whl"))


def test_wheel_holds_every_file_of_the_package_and_the_configs(checkout, wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    package = {str(p.relative_to(checkout)) for p in (checkout / "trim_jax").rglob("*")
               if p.is_file()}
    configs = {f"trim_jax/{p.relative_to(checkout)}" for p in (checkout / "configs").glob("*.py")}
    assert package | configs <= inside
    assert "trim_jax/assets/tokenizer/tokenizer.json" in inside
    assert "trim_jax/configs/sweep.py" in inside
    assert any(name.startswith("trim_jax/eval/templates/") for name in inside)
    assert {name.partition("/")[0] for name in inside if ".dist-info" not in name} == {"trim_jax"}


def test_wheel_works_from_another_directory(wheel, tmp_path):
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    lines = run_elsewhere(tmp_path / "elsewhere", site)
    assert lines == [str(site / "trim_jax/__init__.py"), str(site / "trim_jax/configs/sweep.py"),
                     "0.25", str(site / "trim_jax/assets/tokenizer/tokenizer.json")]
    assert Path(lines[3]).is_file()


def test_wheel_has_the_command_and_bounds_every_dependency(wheel):
    with zipfile.ZipFile(wheel) as archive:
        info = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = archive.read(info).decode().splitlines()
        commands = archive.read(info.replace("METADATA", "entry_points.txt")).decode()
    assert "trim-jax = trim_jax.cli:main" in commands
    needed = [line for line in metadata if line.startswith("Requires-Dist:")]
    assert [line for line in needed if "extra ==" not in line and "<" not in line] == []
    assert 'Requires-Dist: torch==2.13.0; extra == "test"' in needed
    assert {line for line in metadata if line.startswith("Provides-Extra:")} == {
        "Provides-Extra: test", "Provides-Extra: tpu", "Provides-Extra: cuda"}


def test_editable_install_works_from_another_directory(checkout, tmp_path):
    prefix = tmp_path / "prefix"
    pip("install", *BUILD, "--prefix", str(prefix), "--ignore-installed", "-e", str(checkout))
    site = next(prefix.rglob("site-packages"))
    lines = run_elsewhere(tmp_path / "elsewhere", site)
    assert lines == [str(checkout / "trim_jax/__init__.py"), str(checkout / "configs/sweep.py"),
                     "0.25", str(checkout / "trim_jax/assets/tokenizer/tokenizer.json")]


def test_checkout_that_is_not_installed_finds_its_configs(checkout, tmp_path):
    lines = run_elsewhere(tmp_path / "elsewhere", checkout)
    assert lines[:3] == [str(checkout / "trim_jax/__init__.py"), str(checkout / "configs/sweep.py"),
                         "0.25"]


def test_contributing_names_only_tests_that_exist():
    named = re.findall(r"`(tests/\S+?\.py)`", (ROOT / "CONTRIBUTING.md").read_text())
    assert len(named) >= 9
    assert [name for name in named if not (ROOT / name).is_file()] == []
