"""`access.allowed_origins` and `access.allowed_hosts` in experts.yaml."""

import pytest
from pydantic import ValidationError

from coe.registry import AccessSpec


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("https://App.example.com", "https://app.example.com"),
        ("https://app.example.com:443", "https://app.example.com"),
        ("http://app.example.com:80", "http://app.example.com"),
        ("https://app.example.com:80", "https://app.example.com:80"),
        ("http://localhost:5173", "http://localhost:5173"),
        ("http://[::1]:5173", "http://[::1]:5173"),
        ("tauri://localhost", "tauri://localhost"),
        ("chrome-extension://abcdefghijklmnop", "chrome-extension://abcdefghijklmnop"),
    ],
)
def test_an_origin_is_normalized_to_the_form_that_browsers_send(written: str, kept: str) -> None:
    assert AccessSpec(allowed_origins=(written,)).allowed_origins == (kept,)


@pytest.mark.parametrize(
    "written", ["*", "null", "", "app.example.com", "https://app.example.com/", "https://*.example.com", "https://a b"]
)
def test_what_is_no_origin_is_refused_with_an_example(written: str) -> None:
    with pytest.raises(ValidationError, match=r"write https://app\.example\.com"):
        AccessSpec(allowed_origins=(written,))


@pytest.mark.parametrize("written", ["llm.example.com", "LLM.example.com", "*.example.com", "gateway", "my_host"])
def test_a_host_is_a_name(written: str) -> None:
    assert AccessSpec(allowed_hosts=(written,)).allowed_hosts == (written.lower(),)


@pytest.mark.parametrize("written", ["*", "", "llm.example.com:8080", "https://llm.example.com", "a.*.example", "a/b"])
def test_what_is_no_host_is_refused_with_an_example(written: str) -> None:
    with pytest.raises(ValidationError, match=r"write llm\.example\.com"):
        AccessSpec(allowed_hosts=(written,))
