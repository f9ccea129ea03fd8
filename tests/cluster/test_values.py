"""One file holds every value that the files of cluster/ need, and fill.sh puts them in."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.cluster.filling import BRACED, FOLDER, VALUES, filled, values

DOCKERFILES = ["Dockerfile", "mlflow.Dockerfile"]
FILES = sorted(path.name for path in FOLDER.iterdir() if path.suffix in {".yaml", ".sh"} and path.name != "fill.sh")


def names_in(file: str) -> set[str]:
    """Values that a file uses: a Dockerfile's are its arguments, for `docker build --build-arg`."""
    text = (FOLDER / file).read_text()
    return set(re.findall(r"^ARG (\w+)", text, re.MULTILINE)) if file in DOCKERFILES else set(BRACED.findall(text))


def run_fill(file: Path, values_file: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"VALUES": str(values_file)}
    return subprocess.run(["bash", FOLDER / "fill.sh", file], env=environment, capture_output=True, text=True)


@pytest.fixture
def all_set(tmp_path: Path) -> Path:
    file = tmp_path / "values.env"
    file.write_text(VALUES.read_text().replace("=CHANGE", "=changed"))
    return file


def test_every_name_has_a_value_and_every_value_is_used() -> None:
    used = {name for file in [*FILES, *DOCKERFILES] for name in names_in(file)}
    assert used == set(values())


def test_names_of_values_have_braces_wherever_they_stand() -> None:
    """envsubst would put a value in place of a plain $NAME too, and nobody who reads the file would know."""
    for file in FILES:
        plain = set(re.findall(r"\$([A-Z][A-Z0-9_]*)", (FOLDER / file).read_text()))
        assert not plain & set(values()), file


def test_values_need_no_quotes_and_are_no_secrets() -> None:
    for name, value in values().items():
        assert re.fullmatch(r"[\w.,:/-]+", value), name
        assert not re.search(r"PASSWORD|TOKEN|SECRET|(^|_)KEY", name)


def test_every_value_is_explained_or_stands_with_one_that_is() -> None:
    sections = VALUES.read_text().split("# --- ")[1:]
    named = {file for section in sections for file in re.findall(r"[\w-]*\.yaml|slurm\.sh|[\w.]*Dockerfile", section)}
    # Each file stands in the heading of a section, save the one whose values are fixed.
    assert {*FILES, *DOCKERFILES} - named == {"runtime-env.yaml"}


@pytest.mark.parametrize("file", FILES)
def test_fill_puts_the_values_in(file: str, all_set: Path) -> None:
    done = run_fill(FOLDER / file, all_set)
    assert done.returncode == 0, done.stderr
    assert done.stdout == filled(file)
    assert not BRACED.search(done.stdout)


def test_fill_names_what_is_not_set() -> None:
    done = run_fill(FOLDER / "aws.yaml", VALUES)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "aws.yaml needs AWS_" in done.stderr


def test_fill_names_what_is_unknown_and_leaves_the_machine_its_own(tmp_path: Path, all_set: Path) -> None:
    file = tmp_path / "file.yaml"
    file.write_text("a: $HOME ${SHARED} ${HOME:-x}")
    assert run_fill(file, all_set).stdout == "a: $HOME /shared ${HOME:-x}"
    file.write_text("a: ${SHARRED}")
    done = run_fill(file, all_set)
    assert done.returncode == 2
    assert "SHARRED" in done.stderr
