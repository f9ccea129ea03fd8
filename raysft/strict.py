"""The base of everything that a sweep file holds: unknown keys are refused, and nothing changes after validation."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

# Of what becomes a folder and an experiment.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9_-])?$", max_length=100)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())
