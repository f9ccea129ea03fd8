"""Objectives of other packages, found through entry points: real packages, each in a process of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from raysft.objectives.registry import BUILT_IN, known, name_of

README = Path(__file__).parents[2] / "README.md"

MINE = """
from typing import Literal

from raysft.objectives import Objective


class Mine(Objective):
    type: Literal["mine"] = "mine"
    gamma: float = 2.0

    def f(self, logp):
        return (-self.gamma * logp.expm1())
"""


def install(folder: Path, source: str, entry_point: str, package: str = "theirs") -> None:
    """What an installer leaves of a package with one module and one entry point."""
    (folder / f"{package}.py").write_text(source)
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[raysft.objectives]\n{entry_point}\n")


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A process that sees the packages installed in the folder."""
    path = os.pathsep.join([str(folder), str(README.parent)])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def said(folder: Path, code: str) -> str:
    """What the code prints; an InputError's words where it ends in one."""
    done = python(
        folder, "-c", f"from raysft.errors import InputError\ntry:\n    {code}\nexcept InputError as e: print(e)"
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


BUILD_MINE = "from raysft.objectives import build; print(repr(build('mine', gamma=3)), build('mine', gamma=3).label())"


def test_all_built_in_objectives_are_known_by_their_names() -> None:
    """And have names of their own: two of one name would hide each other."""
    assert [known()[name_of(cls)] for cls in BUILT_IN] == list(BUILT_IN)


def test_an_objective_of_another_package_is_built_by_name(tmp_path: Path) -> None:
    install(tmp_path, MINE, "mine = theirs:Mine")
    words = said(tmp_path, BUILD_MINE)
    assert words.startswith("Mine(type='mine',")
    assert words.endswith("gamma=3.0) mine gamma 3")


def test_its_parameters_are_checked_as_those_of_this_package(tmp_path: Path) -> None:
    install(tmp_path, MINE, "mine = theirs:Mine")
    words = said(tmp_path, "from raysft.objectives import build; build('mine', gama=3)")
    assert words == "objective 'mine' gama: 'gama' is not a key here. Did you mean 'gamma'?"
    words = said(tmp_path, "from raysft.objectives import build; build('mien')")
    assert words == "objective 'mien': is unknown. Did you mean 'mine'?"


def test_names_alone_import_no_torch(tmp_path: Path) -> None:
    """Sweep files are checked on machines where that takes seconds."""
    install(tmp_path, MINE, "mine = theirs:Mine")
    code = "import sys; from raysft.objectives import build; build('mine'); build('gem'); print('torch' in sys.modules)"
    assert said(tmp_path, code) == "False"


@pytest.mark.parametrize(
    ("source", "entry_point", "told"),
    [
        (
            "import no_such_module",
            "mine = theirs:Mine",
            "objective 'mine' of theirs (theirs:Mine): cannot be imported: "
            "ModuleNotFoundError(\"No module named 'no_such_module'\"). Mend or uninstall its package.",
        ),
        (
            "1 / 0",
            "mine = theirs:Mine",
            "objective 'mine' of theirs (theirs:Mine): cannot be imported: ZeroDivisionError('division by zero').",
        ),
        (
            MINE,
            "mine = theirs:Yours",
            "objective 'mine' of theirs (theirs:Yours): cannot be imported: AttributeError(",
        ),
        (
            "class Mine: pass",
            "mine = theirs:Mine",
            "objective 'mine' of theirs (theirs:Mine): is no objective. "
            "Derive it from raysft.objectives.Objective or DistributionObjective.",
        ),
        (
            "def Mine(): pass",
            "mine = theirs:Mine",
            "objective 'mine' of theirs (theirs:Mine): is no objective.",
        ),
        (
            MINE,
            "yours = theirs:Mine",
            "objective 'yours' of theirs (theirs:Mine): its type is 'mine'. "
            'Write type: Literal["yours"] = "yours" in the class.',
        ),
        (
            MINE,
            "power = theirs:Mine",
            "objective 'power' of theirs (theirs:Mine): the name is taken. "
            "Give the objective another type and entry point.",
        ),
    ],
    ids=["missing module", "raises", "missing class", "other class", "function", "other name", "taken name"],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, source: str, entry_point: str, told: str) -> None:
    install(tmp_path, source, entry_point)
    assert said(tmp_path, BUILD_MINE).startswith(told)


def test_two_packages_cannot_share_a_name(tmp_path: Path) -> None:
    install(tmp_path, MINE, "mine = ours:Mine", package="ours")
    install(tmp_path, MINE, "mine = theirs:Mine", package="theirs")
    assert re.match(r"objective 'mine' of \w+ \(\w+:Mine\): the name is taken\.", said(tmp_path, BUILD_MINE))


def test_the_example_of_the_readme_passes_the_suite(tmp_path: Path) -> None:
    """Its very text, as a package of its own: built by name, and through all of ObjectiveConformance."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    examples = [block for block in blocks if "(Objective)" in block]
    assert examples, "the README shows no objective of one's own"
    (cls,) = re.findall(r"^class (\w+)\(Objective\)", examples[0], flags=re.MULTILINE)
    (name,) = re.findall(r"type: Literal\[\"(\w+)\"\]", examples[0])
    install(tmp_path, examples[0], f"{name} = theirs:{cls}")
    assert cls in said(tmp_path, f"from raysft.objectives import build; print(repr(build('{name}')))")
    (tmp_path / "test_theirs.py").write_text(
        f"from theirs import {cls}\n"
        "from raysft.objectives.conformance import ObjectiveConformance\n\n\n"
        f"class Test{cls}(ObjectiveConformance):\n"
        f"    objectives = [{cls}()]\n"
    )
    done = python(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_theirs.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"[1-9]\d* passed", done.stdout)
