"""Tests of `coe init`: finding models, selecting them, and the declaration that it writes."""
