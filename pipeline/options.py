"""The base of every section of a job."""

from pydantic import BaseModel, ConfigDict


class Options(BaseModel):
    """A section of a job: frozen, and closed to keys that it does not name."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
