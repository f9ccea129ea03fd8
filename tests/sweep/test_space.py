"""The search space as Optuna sees it: what is drawn lies in it, and comes back as what was drawn."""

import warnings

import optuna
from hypothesis import given, settings
from hypothesis import strategies as st

from raysft.capability import Capability, resolve_threshold
from raysft.config import SearchConfig, SpaceConfig, TrialConfig
from raysft.config.grid import points, size
from raysft.objectives import Power
from raysft.sweep.space import Space, _fits, sampler

RATE = 1e-3
POWER = {"type": "power"}
FOCAL = {"type": "focal", "gamma": {"low": 0, "high": 5}}
GEM = {"type": "gem", "beta": [0.5, 0.7], "link": ["linear", "logsigmoid"]}
MOVING = {"type": "power", "exponent": [0, 1], "final_exponent": {"low": 0, "high": 2}, "schedule": "cosine"}
SPACES = st.builds(
    SpaceConfig,
    objectives=st.sampled_from([[POWER], [FOCAL], [POWER, {"type": "dft"}], [GEM, MOVING, FOCAL]]),
    exponent=st.sampled_from([{"low": -1, "high": 3}, {"low": 0.1, "high": 10, "log": True}, [0, 0.5, 1], [2], 0.5]),
    threshold=st.sampled_from([None, {"low": 0.0, "high": 0.9}, [0.1, 0.2], 0.3]),
    threshold_optional=st.booleans(),
    threshold_unit=st.sampled_from(["probability", "quantile"]),
    keep=st.sampled_from([["above"], ["below"], ["above", "below"]]),
    learning_rate=st.sampled_from([None, {"low": 1e-4, "high": 1e-2, "log": True}, [1e-3, 2e-3]]),
)


def capability() -> Capability:
    """A base model whose p is uniform on [0, 1]."""
    return Capability(
        mean_probability=0.5,
        mean_logp=-1.0,
        share_above=0.45,
        tokens=1000,
        samples=10,
        quantiles=[i / 100 for i in range(101)],
        histogram=[50] * 20,
    )


@given(SPACES, st.integers(0, 1000), st.integers(0, 2))
def test_every_draw_lies_in_the_space_and_is_found_there_again(space: SpaceConfig, seed: int, drawn: int) -> None:
    found = Space(space, RATE, seed=0)
    asked = optuna.create_study(sampler=sampler(SearchConfig(seed=seed), drawn)).ask()
    found(asked)
    trial = resolve_threshold(found.trial(asked.params), capability())
    objective = trial.objective
    assert objective.threshold_unit == "probability"
    for key, dimension in space.dimensions(objective.type).items():
        assert _fits(dimension, getattr(objective, key))
    if objective.threshold is None:
        assert space.threshold is None or space.threshold_optional
        assert objective.keep == "above"
    else:
        assert space.threshold is not None
        assert objective.keep in space.keep
        assert (trial.quantile is not None) == (space.threshold_unit == "quantile")
    params, distributions = found.locate(trial, capability())
    assert params == asked.params
    assert distributions == asked.distributions


LISTED = {"type": "power", "exponent": [0, 1], "final_exponent": {"low": 0, "high": 2, "step": 0.5}}
FINITE = st.builds(
    SpaceConfig,
    objectives=st.sampled_from([[POWER], [{"type": "focal", "gamma": [1, 5]}], [GEM, LISTED, {"type": "dft"}]]),
    exponent=st.sampled_from([{"low": 0.1, "high": 0.7, "step": 0.1}, [3, 0.5, 1], [2], 0.5]),
    threshold=st.sampled_from([None, {"low": 0.0, "high": 0.9, "step": 0.3}, [0.2, 0.1], 0.3]),
    threshold_optional=st.booleans(),
    keep=st.sampled_from([["above"], ["below"], ["above", "below"]]),
    learning_rate=st.sampled_from([None, 3e-3, [1e-3, 2e-3]]),
)


@settings(deadline=None, max_examples=60)
@given(FINITE)
def test_a_grid_has_what_optunas_exhaustive_search_finds(space: SpaceConfig) -> None:
    """Its order aside, which there is random."""
    found = Space(space, RATE, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(sampler=optuna.samplers.BruteForceSampler(seed=0, avoid_premature_stop=True))

    def objective(trial: optuna.Trial) -> float:
        found(trial)
        return 0.0

    study.optimize(objective)
    expected = [found.trial(trial.params) for trial in study.trials]
    grid = [TrialConfig(objective=o, learning_rate=rate or RATE, seed=0) for o, rate in points(space)]
    assert len(grid) == size(space) == len(set(map(TrialConfig.name, grid))) == len(expected)
    assert sorted(map(rounded, grid)) == sorted(map(rounded, expected))


def rounded(trial: TrialConfig) -> str:
    """As text: Optuna adds steps up, and 0.1 + 2 x 0.1 is 0.30000000000000004 there."""
    values = {k: round(v, 9) if isinstance(v, float) else v for k, v in trial.objective.model_dump().items()}
    return repr((sorted(values.items(), key=str), trial.learning_rate))


@given(FINITE)
def test_every_point_of_a_grid_is_known_to_optuna(space: SpaceConfig) -> None:
    found = Space(space, RATE, seed=0)
    for objective, rate in points(space):
        trial = TrialConfig(objective=objective, learning_rate=rate or RATE, seed=0)
        params, distributions = found.locate(trial, capability())
        optuna.trial.create_trial(value=0.0, params=params, distributions=distributions)
        assert rounded(found.trial(params)) == rounded(trial)


def test_a_given_trial_of_another_objective_lies_where_it_belongs() -> None:
    space = Space(SpaceConfig(objectives=[{"type": "power"}, FOCAL], exponent=[0, 1]), RATE, seed=0)
    focal = TrialConfig(objective={"type": "focal", "gamma": 3}, learning_rate=RATE, seed=0)
    assert space.locate(focal, capability())[0] == {"objective": "focal", "focal.gamma": 3.0}
    one = TrialConfig(objective=Power(exponent=1), learning_rate=RATE, seed=0)
    assert space.locate(one, capability())[0] == {"objective": "power", "exponent": 1.0}
    moving = TrialConfig(objective=Power(exponent=1, final_exponent=0), learning_rate=RATE, seed=0)
    assert space.locate(moving, capability()) == ({}, {})
    dft = TrialConfig(objective={"type": "dft"}, learning_rate=RATE, seed=0)
    assert space.locate(dft, capability()) == ({}, {})
