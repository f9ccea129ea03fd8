"""Where samples and problems come from."""

from pathlib import PurePath, PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from raysft.strict import Strict


def _no_path(revision: str) -> str:
    if revision.startswith("/") or ".." in revision or "\\" in revision:
        raise ValueError(f"'{revision}' is no commit, branch or tag")  # the hub's cache has a file of its name
    return revision


FilePath = Annotated[str, BeforeValidator(lambda path: str(path) if isinstance(path, PurePath) else path)]
Revision = Annotated[str, AfterValidator(_no_path)]


def ending(path: str) -> str:
    return PurePosixPath(path).suffix.lower()


class FileSource(Strict):
    """JSONL, JSON (a list of objects) or Parquet, told by the ending; local, or s3://bucket/... or gs://..."""

    kind: Literal["file"] = "file"
    path: FilePath
    key: str | None = Field(default=None, description="of a .json that holds an object: where its list of samples is")

    @field_validator("path")
    @classmethod
    def _known_ending(cls, path: str) -> str:
        if ending(path) not in (".jsonl", ".json", ".parquet"):
            raise ValueError(f"'{path}' must end in .jsonl, .json or .parquet")
        return path

    @model_validator(mode="after")
    def _key_of_json(self) -> Self:
        if self.key is not None and ending(self.path) != ".json":
            raise ValueError("key names a list inside a .json file: leave it out for other files")
        return self


class HubSource(Strict):
    """A Hugging Face data set, by hub id or by folder."""

    kind: Literal["hub"] = "hub"
    path: str = Field(min_length=1)
    subset: str | None = None
    split: str = "train"
    revision: Revision | None = None
    file: str | None = Field(default=None, description="one file of the data set; null: those that its split names")
    key: str | None = Field(default=None, description="of a JSON file that holds an object: where its samples are")

    @model_validator(mode="after")
    def _key_of_file(self) -> Self:
        if self.key is not None and not (self.file or "").endswith(".json"):
            raise ValueError("key names a list inside a JSON file: name that file with file: ....json")
        return self


class ReasoningGymSource(Strict):
    """A procedurally generated task of the reasoning-gym package."""

    kind: Literal["reasoning_gym"] = "reasoning_gym"
    task: str = Field(min_length=1)
    size: int = Field(gt=0)
    seed: int = Field(default=42, ge=0)
    params: dict[str, Any] = Field(default_factory=dict)


Source = Annotated[FileSource | HubSource | ReasoningGymSource, Field(discriminator="kind")]
