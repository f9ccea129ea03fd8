"""The sweep file as typed models. Imports neither torch nor ray, so that a file is checked in an instant.

Every model forbids unknown keys and is immutable; `raysft.sweepfile` reads YAML into them and words the errors.
"""

from raysft.config.evaluation import (
    SCORES,
    TASKS,
    EvaluationConfig,
    GenerationConfig,
    TaskConfig,
    Template,
    builtin_tasks,
    task_values,
)
from raysft.config.search import METRIC_MODES, AshaConfig, ProbeConfig, SearchConfig, TrackingConfig
from raysft.config.source import FileSource, HubSource, ReasoningGymSource, Source
from raysft.config.space import PAPER_BASELINES, AnyObjective, Range, SpaceConfig, bounds
from raysft.config.sweep import (
    OVERRIDABLE,
    STUDY_SECTIONS,
    TRIAL_SECTIONS,
    BackboneConfig,
    DataConfig,
    Job,
    SweepConfig,
    TrialConfig,
    config_hash,
    merge,
    merges,
)
from raysft.config.training import LoraConfig, TrainingConfig, WorkersConfig, ZeroConfig, total_steps

__all__ = [
    "METRIC_MODES",
    "OVERRIDABLE",
    "PAPER_BASELINES",
    "SCORES",
    "STUDY_SECTIONS",
    "TASKS",
    "TRIAL_SECTIONS",
    "AnyObjective",
    "AshaConfig",
    "BackboneConfig",
    "DataConfig",
    "EvaluationConfig",
    "FileSource",
    "GenerationConfig",
    "HubSource",
    "Job",
    "LoraConfig",
    "ProbeConfig",
    "Range",
    "ReasoningGymSource",
    "SearchConfig",
    "Source",
    "SpaceConfig",
    "SweepConfig",
    "TaskConfig",
    "Template",
    "TrackingConfig",
    "TrainingConfig",
    "TrialConfig",
    "WorkersConfig",
    "ZeroConfig",
    "bounds",
    "builtin_tasks",
    "config_hash",
    "merge",
    "merges",
    "task_values",
    "total_steps",
]
