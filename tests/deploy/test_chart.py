"""The Helm chart, rendered by Helm's own library and held against Kubernetes' schemas."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import pytest
from ruamel.yaml import YAML

from coe.registry import load

ROOT = Path(__file__).parent.parent.parent
CHART = ROOT / "deploy" / "helm" / "coe"
EXPERTS = (ROOT / "deploy" / "compose" / "experts.yaml").read_text()
KUBERNETES = ("1.27", "1.34")
OF_OTHERS = {"ServiceMonitor"}
"""Kinds that Kubernetes itself does not define."""
EVERYTHING: dict[str, Any] = {
    "experts": EXPERTS,
    "environmentSecret": "keys",
    "imagePullSecrets": [{"name": "registry"}],
    "gateway": {
        "environment": {"COE_ACCESS_LOG": "1"},
        "nodeSelector": {"disk": "fast"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "autoscaling": {"enabled": True},
    },
    "state": {"storageClass": "nfs"},
    "ingress": {"enabled": True, "className": "nginx", "host": "llm.example.com", "tlsSecret": "tls"},
    "networkPolicy": {
        "from": [{"namespaceSelector": {"matchLabels": {"team": "apps"}}}],
        "to": [{"podSelector": {"matchLabels": {"app": "redis"}}}],
    },
    "monitor": {"enabled": True, "bearerTokenSecret": {"name": "metrics", "key": "token"}},
    "vllm": [
        {"name": "coder", "model": "a/b", "gpus": 2, "args": ["--max-model-len", "4096"], "cacheClaim": "models"},
        {"name": "generalist", "model": "c/d", "nodeSelector": {"gpu": "l4"}, "tolerations": [{"operator": "Exists"}]},
    ],
}


def rendered(values: dict[str, Any]) -> list[dict[str, Any]]:
    """The objects that an installation of these values makes."""
    with helm_python.Chart.load(str(CHART)) as chart:
        files = chart.render(values, name="prod", namespace="llm")
    pages = (page for name, text in files.items() if name.endswith(".yaml") for page in YAML(typ="safe").load_all(text))
    return [page for page in pages if page]


def of(objects: list[dict[str, Any]], kind: str, end: str = "") -> dict[str, Any]:
    (found,) = [one for one in objects if one["kind"] == kind and one["metadata"]["name"].endswith(end)]
    return found


def gateway(objects: list[dict[str, Any]]) -> dict[str, Any]:
    pod: dict[str, Any] = of(objects, "Deployment", "prod-coe")["spec"]["template"]
    return pod


@pytest.mark.parametrize("values", [{"experts": EXPERTS}, EVERYTHING], ids=["least", "everything"])
@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_accepts_every_object(values: dict[str, Any], version: str) -> None:
    objects = rendered(values)
    assert len(objects) > 4
    for one in objects:
        if one["kind"] not in OF_OTHERS:
            kubernetes_validate.validate(one, version, strict=True)


def test_helm_finds_nothing_to_mend() -> None:
    assert not [m for m in helm_python.lint(str(CHART), EVERYTHING, strict=True)["messages"] if m["severity"] > 1]


def test_the_declaration_arrives_as_it_was_written(tmp_path: Path) -> None:
    written = tmp_path / "experts.yaml"
    written.write_text(of(rendered(EVERYTHING), "ConfigMap")["data"]["experts.yaml"])
    assert load(written, environ={}).expert_names == ("coder", "mathematician", "generalist")


def test_without_a_declaration_it_says_what_to_pass() -> None:
    with pytest.raises(helm_python.HelmRenderError, match=r"--set-file experts=experts\.yaml"):
        rendered({})


def test_a_pod_may_do_little_and_has_time_to_drain() -> None:
    pod = gateway(rendered(EVERYTHING))["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["automountServiceAccountToken"] is False
    for container in (*pod["initContainers"], *pod["containers"]):
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    environ = {entry["name"]: entry["value"] for entry in pod["containers"][0]["env"]}
    assert pod["terminationGracePeriodSeconds"] == int(environ["COE_DRAIN"]) + 55
    assert environ["COE_ACCESS_LOG"] == "1"


def test_services_disruption_budget_and_policies_select_the_pods_they_mean() -> None:
    objects = rendered(EVERYTHING)
    labels = gateway(objects)["metadata"]["labels"]
    served = of(objects, "Deployment", "vllm-coder")["spec"]["template"]["metadata"]["labels"]
    for selector, mine, other in (
        (of(objects, "Service", "prod-coe")["spec"]["selector"], labels, served),
        (of(objects, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"], labels, served),
        (of(objects, "NetworkPolicy", "prod-coe")["spec"]["podSelector"]["matchLabels"], labels, served),
        (of(objects, "Service", "vllm-coder")["spec"]["selector"], served, labels),
        (of(objects, "NetworkPolicy", "coe-vllm")["spec"]["podSelector"]["matchLabels"], served, labels),
    ):
        assert selector.items() <= mine.items()
        assert not selector.items() <= other.items()


def test_with_autoscaling_the_deployment_names_no_number_of_replicas() -> None:
    objects = rendered(EVERYTHING)
    assert "replicas" not in of(objects, "Deployment", "prod-coe")["spec"]
    assert of(objects, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]["name"] == "prod-coe"
    assert of(rendered({"experts": EXPERTS}), "Deployment")["spec"]["replicas"] == 2


def test_gateway_and_retraining_share_the_state_folder() -> None:
    objects = rendered(EVERYTHING)
    job = of(objects, "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    claims = [
        volume["persistentVolumeClaim"]["claimName"]
        for pod in (gateway(objects)["spec"], job)
        for volume in pod["volumes"]
        if volume["name"] == "state"
    ]
    assert claims == [of(objects, "PersistentVolumeClaim")["metadata"]["name"]] * 2
    assert job["containers"][0]["args"] == ["retrain"]


def test_an_expert_gets_its_gpus_and_what_was_declared_of_it() -> None:
    pod = of(rendered(EVERYTHING), "Deployment", "vllm-coder")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["args"] == ["--model", "a/b", "--served-model-name", "coder", "--max-model-len", "4096"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "2"}


def test_an_image_may_be_named_by_digest() -> None:
    digest = "sha256:" + "a" * 64
    image = {"repository": "r/coe-gateway", "tag": "1", "digest": digest}
    (container,) = gateway(rendered({"experts": EXPERTS, "image": image}))["spec"]["containers"]
    assert container["image"] == f"r/coe-gateway:1@{digest}"


@pytest.mark.parametrize(
    ("place", "value"),
    [(("gateway", "replicas"), "two"), (("vllm",), [{"model": "m"}]), (("gatway",), {}), (("retrain", "schedule"), 6)],
)
def test_values_that_cannot_be_meant_are_refused(place: tuple[str, ...], value: Any) -> None:
    values: dict[str, Any] = copy.deepcopy({"experts": EXPERTS})
    inner = values
    for step in place[:-1]:
        inner = inner.setdefault(step, {})
    inner[place[-1]] = value
    with pytest.raises(helm_python.HelmError):
        rendered(values)


@pytest.mark.parametrize(
    "line", ["", "artifacts: folder", "artifacts: redis://redis:6379/0", 'artifacts: "rediss://r"']
)
def test_the_notes_warn_where_gateways_would_share_nothing(line: str) -> None:
    with helm_python.Chart.load(str(CHART)) as chart:
        notes = chart.render({"experts": f"{EXPERTS}\n{line}\n"}, name="prod", namespace="llm")[
            "coe/templates/NOTES.txt"
        ]
    assert ("each pod keeps its own" in notes) == ("redis" not in line)
