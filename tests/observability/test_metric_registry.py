"""The metric registry: counting in one process, and the page over several processes."""

import os

import pytest

from gateway.observability.metrics import MetricRegistry, exposition, parse_snapshot
from tests.observability.pages import samples, value


def counted(requests: int, *, waiting: float = 0.0) -> MetricRegistry:
    registry = MetricRegistry()
    counter = registry.counter("c_total", "C.", ("who",))
    histogram = registry.histogram("h_seconds", "H.", (0.1, 1.0), ("who",))
    registry.gauge("sum", "S.", (), lambda: {(): waiting}, largest=False)
    registry.gauge("most", "M.", ("who",), lambda: {("a",): waiting}, largest=True)
    for _ in range(requests):
        counter.add(("a",))
        histogram.observe(("a",), 0.1)
    histogram.observe(("b",), 5.0)
    return registry


def test_the_page_of_one_process_holds_what_it_counted() -> None:
    text = exposition([counted(3, waiting=2).families()])
    assert value(text, "c_total", who="a") == 3
    assert [value(text, "h_seconds_bucket", who="a", le=le) for le in ("0.1", "1.0", "+Inf")] == [3, 3, 3]
    assert [value(text, "h_seconds_bucket", who="b", le=le) for le in ("0.1", "1.0", "+Inf")] == [0, 0, 1]
    assert value(text, "h_seconds_count", who="a") == 3
    assert value(text, "h_seconds_sum", who="a") == pytest.approx(0.3)
    assert value(text, "sum") == 2


def test_counters_histograms_and_gauges_of_several_processes_are_merged() -> None:
    other = parse_snapshot(counted(4, waiting=5).snapshot())
    text = exposition([counted(3, waiting=2).families(), other])
    assert value(text, "c_total", who="a") == 7
    assert value(text, "h_seconds_bucket", who="a", le="0.1") == 7
    assert value(text, "h_seconds_sum", who="b") == 10
    assert value(text, "sum") == 7
    assert value(text, "most", who="a") == 5


def test_showing_a_page_changes_nothing() -> None:
    registry, other = counted(3), parse_snapshot(counted(4).snapshot())
    assert exposition([registry.families(), other]) is not None
    assert value(exposition([registry.families()]), "c_total", who="a") == 3
    assert value(exposition([other]), "c_total", who="a") == 4


def test_a_process_continues_the_counts_of_the_one_it_replaces() -> None:
    registry = counted(1, waiting=1)
    registry.resume(counted(10, waiting=9).snapshot())
    text = exposition([registry.families()])
    assert value(text, "c_total", who="a") == 11
    assert value(text, "h_seconds_count", who="b") == 2
    assert value(text, "sum") == 1


def test_buckets_that_changed_are_not_counted_on_from() -> None:
    before, now = MetricRegistry(), MetricRegistry()
    before.histogram("h_seconds", "H.", (0.1,)).observe((), 1.0)
    now.histogram("h_seconds", "H.", (0.5,)).observe((), 1.0)
    now.resume(before.snapshot())
    assert value(exposition([now.families()]), "h_seconds_count") == 1


def test_each_process_shows_its_own_memory_and_descriptors() -> None:
    one, two = counted(1), counted(1)
    two.worker = 1
    text = exposition([one.families(), parse_snapshot(two.snapshot())])
    for worker in ("0", "1"):
        assert value(text, "process_resident_memory_bytes", worker=worker) > 1e6
        assert 0 < value(text, "process_open_fds", worker=worker) <= value(text, "process_max_fds", worker=worker)
        assert value(text, "process_cpu_seconds_total", worker=worker) <= sum(os.times()[:2]) + 1


def test_label_values_of_any_kind_stay_one_sample() -> None:
    registry = MetricRegistry()
    registry.counter("c_total", "C.", ("who",)).add(('a"\\\n{}',))
    assert len([name for name, _ in samples(exposition([registry.families()])) if name == "c_total"]) == 1
