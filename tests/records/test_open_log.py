"""Valid addresses of a log, and side effects that opening it must not have."""

from __future__ import annotations

from pathlib import Path

import pytest

from coe.errors import ConfigError, StoreError
from coe.records import open_log_and_feedback
from coe.records.record import LogQuery
from tests.records.samples import record

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "url",
    [
        "",
        "records.db",
        "postgres://u:secret@host/db",
        "sqlite:",
        "sqlite:///",
        "sqlite://a.db",
        "sqlite:///dir/",
        "sqlite:///a?b=1",
    ],
)
def test_an_address_of_no_known_kind_is_refused_with_the_forms_to_write(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sqlite:///path/records.db.*redis://host:6379/0") as caught:
        open_log_and_feedback(url, base=tmp_path)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["redis://:se/cret@host:6379/0", "redis://host:port/0", "redis://host/0?colour=red"])
def test_a_wrong_redis_address_is_refused_without_repeating_its_password(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a Redis address") as caught:
        open_log_and_feedback(url, base=tmp_path)
    assert "'se'" not in str(caught.value)
    assert caught.value.__suppress_context__  # a traceback would show the cause, and that quotes a part of it


async def test_relative_paths_start_at_the_base_and_absolute_ones_at_the_root(tmp_path: Path) -> None:
    for url, path in (
        ("sqlite:///a/b%20c.db", tmp_path / "a/b c.db"),
        (f"sqlite:///{tmp_path}/d.db", tmp_path / "d.db"),
    ):
        log = open_log_and_feedback(url, base=tmp_path)[0]
        assert not path.exists()
        await log.append([record()])
        assert path.exists()
        await log.aclose()


async def test_a_redis_that_is_away_shows_at_the_first_use_as_one_clear_error(tmp_path: Path) -> None:
    log = open_log_and_feedback("redis://user:secret@127.0.0.1:1/0", base=tmp_path)[0]
    for use in (log.append([record()]), log.read(LogQuery()), log.back(LogQuery())):
        with pytest.raises(StoreError, match=r"127\.0\.0\.1:1.*check that it runs") as caught:
            await use
        assert "secret" not in str(caught.value)
    await log.aclose()
