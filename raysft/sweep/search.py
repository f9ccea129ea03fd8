"""What runs next: Tune's searcher over the space, which goes by the ledger and, where it is asked for, by halving."""

import math
from collections.abc import Callable
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher

from raysft.advisor import Advice, resolve
from raysft.capability import Capability
from raysft.config import SearchConfig, TrialConfig
from raysft.sweep.halving import Halving
from raysft.sweep.ledger import Ledger, TrialRow
from raysft.sweep.space import Space, sampler

ADVISED = 3  # searched trials that the advice chooses, and no more than half of them


class StudySearch(Searcher):
    """First the trials that were interrupted, then those that are promoted, then what is left of the given ones, then
    searched ones (a grid's points, or the advised and then what Optuna draws), and when all of these have ended those
    that confirm the result. Each is entered into the ledger as it begins.

    To Tune, each way of a trial to its end or to the rung where it is paused is a trial of its own. Tune's own PAUSE
    would live only as long as the process, so that a resume would need a second way to promote.

    Optuna's study is made anew for each trial that is drawn, from what is known then: a trial on its first way is
    running, one that was paused or stopped is pruned at that step, so that values of different budgets are never mixed;
    failed ones are unknown. Given trials need not lie in the space; the sampler learns from those that do.
    """

    def __init__(
        self,
        space: Space,
        given: list[TrialConfig],
        search: SearchConfig,
        capability: Capability,
        ledger: Ledger,
        confirm: Callable[[list[TrialRow]], list[TrialConfig]] = lambda rows: [],
        advice: Advice | None = None,
        grid: list[TrialConfig] | None = None,
    ) -> None:
        """confirm: from the ledger's rows, once the search is over, the trials that confirm it; advice: None where no
        trial needs one and none is to come first by it; grid: what is searched instead of what Optuna would draw.
        """
        super().__init__(metric=search.metric, mode=search.mode)
        self.confirm = confirm
        self.space, self.search, self.capability, self.ledger, self.advice = space, search, capability, ledger, advice
        self.grid = None if grid is None else grid[: search.trials]
        self.advised = self._advised(given)
        self.halving = Halving(search.asha, search.mode == "max") if search.asha else None
        self.trials: dict[str, TrialConfig] = {}  # by the ledger's ids, as all here but `running`
        self.values: dict[str, dict[int, float]] = {}  # step -> metric, where it is a number
        self.known: dict[str, FrozenTrial] = {}  # what Optuna is told
        self.running: dict[str, str] = {}  # Tune's id -> the ledger's
        self.due: list[str] = []
        self.to_confirm: list[TrialConfig] | None = None  # unknown while the search goes on
        self.over = False
        rows = ledger.rows()
        begun = sum(row.trial.role != "confirm" for row in rows)
        self.waiting = given[begun:]
        self.drawn = max(0, begun - len(given))
        for row in rows:
            self._recall(row)

    @property
    def paused(self) -> set[str]:
        return self.halving.paused if self.halving else set()

    def suggest(self, trial_id: str) -> Any:
        """What Tune hands to the trial's function; None: ask again when something has ended; or Searcher.FINISHED."""
        name = self._next()
        if name is None:
            self.over = not self.running
            return Searcher.FINISHED if self.over else None
        self.running[trial_id] = name
        if name not in self.known:
            self._learn(name, TrialState.RUNNING)
        until = self.halving.sent.get(name) if self.halving else None
        return {"trial_id": name, "trial": self.trials[name].model_dump(mode="json"), "until": until}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        name, value = self.running[trial_id], result.get(self.metric)
        if value is None:
            return
        if value == value:
            self.values[name][int(result["step"])] = float(value)
        if self.halving:
            self.halving.record(name, int(result["step"]), float(value))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """result: the last one, whose `kind` says whether the trial has finished or is paused."""
        if error or not result:
            self.known.pop(self.running.pop(trial_id), None)
            return
        self.on_trial_result(trial_id, result)
        name = self.running.pop(trial_id)
        if self.halving and result.get("kind") == "paused":
            self.halving.pause(name)
        whole = result.get("kind") == "finished" and int(result["step"]) in self.values[name]
        self._learn(name, TrialState.COMPLETE if whole else TrialState.PRUNED)

    def study(self) -> optuna.Study:
        """Optuna's study of what is known now, with a sampler for the next trial."""
        direction = StudyDirection.MAXIMIZE if self.search.mode == "max" else StudyDirection.MINIMIZE
        study = optuna.create_study(direction=direction, sampler=sampler(self.search, self.drawn))
        study.add_trials(self.known.values())
        return study

    def save(self, checkpoint_path: str) -> None:
        """Tune saves its searchers; a resume makes this one anew."""

    def __getstate__(self) -> dict[str, Any]:
        """Tune also pickles them; what confirms belongs to a study, with its terminal and its tracking."""
        return {name: value for name, value in self.__dict__.items() if name != "confirm"}

    def _next(self) -> str | None:
        if self.due:
            self.ledger.begin_again(self.due[0])
            return self.due.pop(0)
        if self.halving and (name := self.halving.promote()):
            return self._promoted(name)
        if self.waiting:
            return self._begin(self.waiting.pop(0))
        if (trial := self._searched(self.drawn)) is not None:
            self.drawn += 1
            return self._begin(trial)
        searched = self.halving.sent.keys() & self.running.values() if self.halving else ()
        if self.halving and not searched and (name := self.halving.rescue()):
            return self._promoted(name)
        return self._confirming()

    def _confirming(self) -> str | None:
        """The next trial that confirms the result; None while the search is not over, and once there is none left."""
        if self.to_confirm is None:
            self.to_confirm = self._to_confirm()
        return self._begin(self.to_confirm.pop(0)) if self.to_confirm else None

    def _to_confirm(self) -> list[TrialConfig] | None:
        """Those that have not begun; None while the search is not over. Tune asks often, so the ledger is read last."""
        if any(self.trials[name].role != "confirm" for name in self.running.values()):
            return None
        rows = self.ledger.rows()
        searched = [row for row in rows if row.trial.role != "confirm"]
        if any(row.status == "INTERRUPTED" and row.trial_id not in self.paused for row in searched):
            return None
        begun = [row.trial for row in rows if row.trial.role == "confirm"]
        return [trial for trial in self.confirm(rows) if trial not in begun]

    def _advised(self, given: list[TrialConfig]) -> list[TrialConfig]:
        """The searched trials that come first: the same at every start of the study."""
        if self.advice is None or not self.search.advice or self.search.trials is None:
            return []
        tried = [trial.objective for trial in given]
        promising = [objective for objective in self.advice.promising() if objective not in tried]
        trials = [trial for objective in promising if (trial := self.space.of(objective, self.capability))]
        return trials[: min(ADVISED, math.ceil(self.search.trials / 2))]

    def _searched(self, number: int) -> TrialConfig | None:
        """The searched trial of this number, from 0; None where there are no more."""
        if self.grid is not None:
            return self.grid[number] if number < len(self.grid) else None
        assert self.search.trials is not None, "only a grid has a number of its own"
        if number >= self.search.trials:
            return None
        return self.advised[number] if number < len(self.advised) else self._draw()

    def _draw(self) -> TrialConfig:
        asked = self.study().ask()
        self.space(asked)
        return self.space.trial(asked.params)

    def _begin(self, trial: TrialConfig) -> str:
        trial = resolve(trial, self.capability, self.advice)
        name = self.ledger.begin(trial)
        self.trials[name], self.values[name] = trial, {}
        if self.halving and trial.role == "search":
            self.halving.begin(name)
        return name

    def _promoted(self, name: str) -> str:
        assert self.halving
        self.ledger.promote(name, self.halving.sent[name])
        return name

    def _recall(self, row: TrialRow) -> None:
        """A trial that began before an interruption: it has ended, is paused, or is due again."""
        name = row.trial_id
        recorded = self.ledger.values(name, self.metric)
        self.trials[name] = row.trial
        self.values[name] = {step: value for step, value in recorded.items() if value == value}
        was_paused = False
        if self.halving:
            if row.trial.role == "search":
                until = self.ledger.promoted(name)
                self.halving.begin(name, until)
                was_paused = until is not None
                if row.status == "INTERRUPTED" and self.halving.sent[name] in recorded:
                    self.halving.pause(name)
            for step, value in recorded.items():
                self.halving.record(name, step, value)
        if row.ended or name in self.paused:
            whole = row.status == "FINISHED" and row.step in self.values[name]
            self._learn(name, TrialState.COMPLETE if whole else TrialState.PRUNED)
            return
        self.due.append(name)
        last = self.halving.sent[name] // self.halving.factor if self.halving and was_paused else 0
        self.values[name] = {step: value for step, value in self.values[name].items() if step <= last}
        if was_paused:
            self._learn(name, TrialState.PRUNED)

    def _learn(self, name: str, state: TrialState) -> None:
        """What Optuna is told of a trial from now on; of values the last counts. Those of other problems do not."""
        if self.trials[name].role == "confirm":
            return
        params, distributions = self.space.locate(self.trials[name], self.capability)
        if params:
            values = dict(self.values[name]) if state.is_finished() else {}
            self.known[name] = optuna.trial.create_trial(
                state=state,
                value=values[max(values)] if values else None,
                params=params,
                distributions=distributions,
                intermediate_values=values,
            )
