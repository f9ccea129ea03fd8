"""What runs are called and found by, and that a trial's parameters say all of its objective, in numbers."""

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysft.config import SweepConfig, TrialConfig
from raysft.objectives import Power, Selection, build
from raysft.tracking.describing import name_of, objective_of, params_of, tags_of, trial_tags
from raysft.tracking.runs import as_text

CONFIG = SweepConfig.model_validate(
    {
        "name": "sweep",
        "backbones": [{"name": "tiny", "path": "models/tiny"}],
        "data": {"train": {"kind": "file", "path": "train.jsonl"}},
        "search": {"metric": "eval/nll"},
        "tracking": {"tags": {"domain": "math"}},
    }
)
SHARES = st.floats(0, 1)


@st.composite
def objectives(draw: Any) -> Selection:
    own: dict[str, Any] = draw(
        st.one_of(
            st.fixed_dictionaries({"name": st.just("power"), "exponent": st.floats(-3, 20)}),
            st.fixed_dictionaries({"name": st.just("power"), "exponent": SHARES, "final_exponent": SHARES}),
            st.fixed_dictionaries({"name": st.just("focal"), "gamma": st.floats(0, 5)}),
            st.fixed_dictionaries({"name": st.just("gem"), "link": st.sampled_from(["linear", "logsigmoid"])}),
            st.fixed_dictionaries({"name": st.just("dft")}),
        )
    )
    threshold = draw(st.none() | SHARES)
    interval: dict[str, Any] = {"threshold": threshold}
    if threshold is not None:
        interval["keep"] = draw(st.sampled_from(["above", "below"]))
        if interval["keep"] == "above":
            interval["upper"] = draw(st.none() | st.floats(threshold, 1))
    return build(own.pop("name"), **own, **interval)


def trial(objective: Selection, **changes: Any) -> TrialConfig:
    return TrialConfig.model_validate({"objective": objective, "learning_rate": 1e-3, "seed": 0} | changes)


@given(objectives())
def test_parameters_read_back_mean_the_same_objective(objective: Selection) -> None:
    """The same but for an interval that keeps everything: p >= 0, or p <= 1 on top of a threshold."""
    stored = {key: as_text(value) for key, value in params_of("tiny", trial(objective)).items()}
    found = objective_of(stored)
    changes: dict[str, Any] = {"upper": None} if objective.upper == 1 else {}
    if objective.keep == "above" and objective.threshold == 0 and objective.upper in (None, 1):
        changes |= {"threshold": None}
    assert found == objective.model_copy(update=changes)


@given(st.lists(objectives(), min_size=2, max_size=6))
def test_intervals_are_numbers_for_every_trial(found: list[Selection]) -> None:
    for objective in found:
        stored = {key: as_text(value) for key, value in params_of("tiny", trial(objective)).items()}
        assert all(0 <= float(stored[key]) <= 1 for key in ("threshold", "upper"))
        assert stored["keep"] in ("above", "below")


def test_what_differs_between_the_papers_objectives_is_what_the_ui_takes_first() -> None:
    """It compares by the first three parameters, by name, that differ."""
    draw = random.Random(0)
    trials = [trial(Power(exponent=draw.random(), threshold=draw.choice([None, 0.2])), quantile=0.1) for _ in range(9)]
    trials += [trial(Power(exponent=1, threshold=0.5), role="baseline")]
    runs = [params_of(backbone, one) for backbone in ("weak", "strong") for one in trials]
    differing = sorted(key for key in runs[0] if len({str(run[key]) for run in runs}) > 1)
    assert differing[:3] == ["backbone", "exponent", "threshold"]


def test_an_unknown_objective_is_none() -> None:
    stored = {key: as_text(value) for key, value in params_of("tiny", trial(Power())).items()}
    assert objective_of(stored | {"objective": "of another version"}) is None
    assert objective_of(stored | {"exponent": "much"}) is None
    assert objective_of({}) is None


def test_names_say_what_differs_within_a_study() -> None:
    searched = CONFIG.model_copy(update={"space": CONFIG.space.model_copy(update={"learning_rate": [1e-4, 1e-3]})})
    assert name_of(trial(Power(exponent=1)), CONFIG) == "-p"
    assert name_of(trial(Power(exponent=1)), searched) == "-p, lr 0.001"
    assert name_of(trial(Power(exponent=1, threshold=0.2), seed=7), CONFIG) == "-p, p >= 0.2, seed 7"


def test_tags_filter_by_the_files_own_and_by_backbone_sweep_and_role() -> None:
    own = {"domain": "math", "sweep": "sweep", "backbone": "tiny"}
    assert tags_of(CONFIG, "study") == {**own, "role": "study"}
    found = trial_tags(trial(Power(threshold=0.3), quantile=0.25, role="baseline"), CONFIG, None)
    assert found.items() >= {**own, "role": "baseline", "quantile": "0.25"}.items()
    assert "upper_quantile" not in found


@pytest.mark.parametrize("role", ["baseline", "search", "train"])
def test_descriptions_say_what_a_trial_is(role: str) -> None:
    note = trial_tags(trial(Power(exponent=1), role=role), CONFIG, 0.5)["mlflow.note.content"]
    assert note.endswith(" on tiny (capability 0.500): -p, learning rate 0.001, seed 0.")
