"""When a worker hangs."""

from gateway.process.processes import Worker


def checked(*beats: int) -> list[bool]:
    """Whether a worker hangs at each of these checks, by its count of beats."""
    worker = object.__new__(Worker)  # without a process
    return [worker.hangs(count) for count in beats]


def test_a_worker_that_stops_to_beat_hangs_after_two_checks() -> None:
    assert checked(3, 6, 6, 6) == [False, False, False, True]


def test_a_beat_in_between_shows_that_a_worker_runs() -> None:
    assert not any(checked(1, 1, 2, 2, 3, 3, 4))


def test_a_worker_that_starts_is_not_watched() -> None:
    assert checked(0, 0, 0, 0, 1, 1, 1) == [False] * 6 + [True]
