"""`coe plan` with recipes: streams, budgets that nothing keeps, and bounds without answers."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from coe.cli import app
from coe.planning import MeasuredUses, Plan
from coe.recipes.fitting.columns import recipe_columns
from tests.recipes.planned import CAREFUL, CATEGORIES, DECLARED, EXPERTS, columns, plan, published, write_config

STRICT = """\
  - name: careful
    cascade: [[a, b], large]
    max_loss: 0.0001
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path)


def test_first_steps_of_streams_are_priced_without_their_caps_and_all_requests_count_as_streams_without_a_log(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every answer of the first member has 100 tokens, and its cap is 50."""
    config.write_text(DECLARED + CAREFUL.replace("[[a, b], large]}]", "[b, large], max_tokens: {b: 50}}]"))
    found = {}
    for streamed in (None, 1.0, 0.5, 0.0):
        if streamed is not None:
            monkeypatch.setattr(
                "coe.planning.job.basis.recipe_columns",
                lambda *args, known=streamed, **options: recipe_columns(*args, **options | {"streamed": known}),
            )
        plan(config)
        problem = Plan.read(published(config)).problem
        assert problem.uses.cost is not None
        found[streamed] = problem.uses.cost[0, problem.experts.index("careful")]
    assert found[None] == found[1.0] != found[0.0]
    assert found[0.5] == pytest.approx((found[0.0] + found[1.0]) / 2)


def uses_of(written: float) -> MeasuredUses:
    """Answers of all experts with as many output tokens, in `law` twice as many."""
    scale = np.array([[1.0], [2.0], [1.0]]) * np.ones((1, 3))
    tokens = {"input_tokens": 0 * scale, "output_tokens": written * scale, "cached_tokens": 0 * scale}
    return MeasuredUses(CATEGORIES, EXPERTS, **tokens, latency_ms=written * scale, first_token_ms=np.nan * scale)


def test_arms_cost_as_much_more_in_service_as_the_experts_that_they_call(config: Path) -> None:
    probes = columns(config, probed=uses_of(100.0))
    requests = columns(config, probed=uses_of(100.0), expected=uses_of(300.0))
    np.testing.assert_allclose(requests.uses.cost, 3 * probes.uses.cost)
    np.testing.assert_allclose(requests.uses.latency_ms, 3 * probes.uses.latency_ms)
    np.testing.assert_array_equal(requests.uses.active_b, probes.uses.active_b)
    for arm, calls in probes.uses.calls.items():
        np.testing.assert_array_equal(requests.uses.calls[arm], calls)


def test_a_budget_that_neither_experts_nor_arms_keep_is_reported_with_its_line_and_the_smallest_one(
    config: Path,
) -> None:
    config.write_text(DECLARED.replace("mean_cost: 10", "mean_cost: 0.5") + CAREFUL)
    result = CliRunner().invoke(app, ["plan", str(config.parent), "--config", str(config)])
    line = DECLARED.splitlines().index("budget: {mean_cost: 10}") + 1
    expected = f"experts.yaml:{line}: budget: mean_cost 0.5 cannot be kept; the smallest feasible limit is 1"
    assert expected in str(result.exception)


def test_a_bound_that_the_probes_do_not_show_is_reported_with_its_line_and_the_remedy(config: Path) -> None:
    text = DECLARED.replace("mean_cost: 10", "mean_cost: 40")
    config.write_text(text + "recipes:\n  - {name: panel, vote: [a, b]}\n" + STRICT)
    result = CliRunner().invoke(app, ["plan", str(config.parent), "--config", str(config), "--dry-run"])
    assert result.exit_code == 0, result.output
    line = len(text.splitlines()) + 5
    note = f"note: experts.yaml:{line}: recipe 'careful' is not planned: the 400 held-out probes"
    assert note in result.stderr
    assert "score more probes, or raise max_loss" in result.stderr
    report = plan(config, "--dry-run")
    assert report["left_out"]["recipes"]["careful"].startswith(f"experts.yaml:{line}: the 400 held-out probes")


def test_a_bound_without_recorded_answers_leaves_the_recipe_out_with_the_remedy(config: Path) -> None:
    (config.parent / "answers.jsonl").unlink()
    config.write_text(DECLARED.replace("mean_cost: 10", "mean_cost: 40") + CAREFUL.replace("}]", ", max_loss: 0.1}]"))
    reason = plan(config)["left_out"]["recipes"]["careful"]
    line = len(DECLARED.splitlines()) + 1
    assert reason == f"experts.yaml:{line}: the scores have no recorded answers; run `coe score` again"
