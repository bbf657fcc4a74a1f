"""The tiny encoder of the router tests, for whole `coe train` runs."""

from tests.routers.conftest import tiny_encoder

__all__ = ["tiny_encoder"]
