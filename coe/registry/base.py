"""Base class and value types of the models of experts.yaml."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError


def _reachable(url: str) -> str:
    """Reject a URL without a valid host and port, which would otherwise fail only on the first request."""
    if "${" in url:  # an unset variable, which is reported elsewhere or stays as it is
        return url
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        fits = bool(host) and port != 0
        if ":" not in host:
            host.encode("idna")
    except ValueError:
        fits = False
    if not fits:
        raise PydanticCustomError("url", "no host and port (1 to 65535) to connect to; write http://HOST:PORT/v1")
    return url


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Url = Annotated[str, Field(pattern=r"^https?://[^\s/]+"), AfterValidator(_reachable)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Flag = str | bool | int | float


class StrictModel(BaseModel):
    """Base of all sections: immutable, unknown keys are errors, docstrings of fields become their descriptions."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
