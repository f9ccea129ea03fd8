"""The base of everything that a sweep file holds: unknown keys are refused, and nothing changes after validation."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())
