"""The composition root: the checks before a port opens."""

import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from coe.artifacts.active_state import check_active_state
from coe.artifacts.store import ArtifactStore
from coe.errors import ArtifactError, ConfigError
from coe.fleet.specs import free_port
from coe.planning.assignment import Assignment
from coe.registry.loader import load
from coe.settings import Settings
from gateway.main import open_port, prepare
from routers.cascade import FORMAT
from tests.fakes import plan_of, router_json

DECLARED = """\
version: 1
categories: [{name: code, description: c}, {name: general, description: g}]
experts: [{name: small, model: m, runtime: %s}]
assignment: {general: small}
"""
EXTERNAL = "external, base_url: 'http://127.0.0.1:9/v1'"


def settings_of(tmp_path: Path, runtime: str = EXTERNAL, *, form: int = FORMAT) -> Settings:
    """Those of a declaration with a router of this format."""
    (tmp_path / "experts.yaml").write_text(DECLARED % runtime)
    settings = Settings.read({}, config=tmp_path / "experts.yaml")
    store = ArtifactStore(settings.artifacts, "router")
    with store.draft() as draft:
        (draft / "router.json").write_bytes(router_json(format=form))
        artifact = store.publish(draft, categories=("code", "general"), data="", metrics={})
    store.promote(artifact.manifest.version)
    return settings


NEW = ", {name: law, description: Contracts and statutes, examples: [%s]}, {name: general"


@pytest.mark.parametrize("examples", ["", "may my landlord do that"])
def test_a_new_category_with_too_few_examples_is_refused_with_the_remedy(tmp_path: Path, examples: str) -> None:
    settings = settings_of(tmp_path)
    settings.config.write_text(settings.config.read_text().replace(", {name: general", NEW % examples))
    with pytest.raises(ConfigError, match=r"not trained on law: give each 2 examples or more .* or run `coe train`"):
        prepare(settings)


def test_a_router_of_an_older_format_is_refused_before_the_port_opens(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=f"format 1, not {FORMAT}; train the router again"):
        prepare(settings_of(tmp_path, form=1))


def planned(settings: Settings, *, digest: str, experts: tuple[str, ...] = ("small",)) -> None:
    plan = Assignment.declared(("general", "code"), experts, {}, experts[0])
    store = ArtifactStore(settings.artifacts, "assignment")
    with store.draft() as draft:
        plan_of(plan).save(draft)
        artifact = store.publish(draft, categories=plan.categories, data=digest, metrics={})
    store.promote(artifact.manifest.version)


def test_a_plan_is_accepted_and_one_of_wholly_other_experts_refused(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    registry, _ = check_active_state(settings)
    planned(settings, digest=registry.digest)
    assert check_active_state(settings)[0] == registry
    planned(settings, digest="other", experts=("large",))
    remedy = (
        r"knows none of the experts in experts\.yaml \(it knows large\); .* `coe plan` again, or `coe plan --forget`"
    )
    with pytest.raises(ArtifactError, match=remedy):
        check_active_state(settings)


def test_a_local_expert_without_a_running_server_is_refused(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, "transformers")
    with pytest.raises(ConfigError, match="'small' runs locally and is not started; use `coe up`"):
        prepare(settings)
    started = Settings.read(
        {"COE_ENDPOINTS": '{"small": {"base_url": "http://h/v1", "model": "m"}}'}, config=settings.config
    )
    prepare(started)


def test_a_port_in_use_is_named_with_the_remedy(tmp_path: Path) -> None:
    settings = replace(settings_of(tmp_path), port=free_port())
    with (
        socket.create_server(("127.0.0.1", settings.port)),
        pytest.raises(ConfigError, match="is in use; stop what listens there or set COE_PORT"),
    ):
        open_port(settings, load(settings.config, environ={}))
    open_port(settings, load(settings.config, environ={})).close()


def test_the_serving_process_imports_nothing_heavy_that_it_does_not_use() -> None:
    code = (
        "import sys, coe.cli, gateway.main, routers.cascade, gateway.process.processes\n"
        "import coe.records.sqlite, coe.records.redis_log\n"
        "heavy = {'torch', 'sklearn', 'scipy', 'transformers', 'litellm', 'pyarrow', 'aiohttp', 'opentelemetry'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"
