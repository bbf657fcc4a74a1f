"""What all models of experts.yaml share: strictness, and the kinds of values."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError


def _reachable(url: str) -> str:
    """Where a connection could be tried: what cannot would fail only once a request is sent there."""
    if "${" in url:  # a variable that is not filled in, which is told elsewhere or is to stay so
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
    """A section: frozen, unknown keys are errors, and the strings under its fields are their descriptions."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
