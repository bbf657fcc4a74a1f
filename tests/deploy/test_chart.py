"""The Helm chart, rendered by Helm's own library and held against Kubernetes' schemas."""

from __future__ import annotations

import re
import tarfile
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
OF_OTHERS = {"ServiceMonitor", "PrometheusRule"}
"""Kinds that Kubernetes itself does not define."""
EVERYTHING: dict[str, Any] = {
    "experts": EXPERTS,
    "environmentSecret": "keys",
    "imagePullSecrets": [{"name": "registry"}],
    "extraEnv": [{"name": "COE_ACCESS_LOG", "value": "1"}],
    "extraVolumes": [{"name": "authorities", "configMap": {"name": "authorities"}}],
    "extraVolumeMounts": [{"name": "authorities", "mountPath": "/etc/authorities"}],
    "podAnnotations": {"example.com/team": "apps"},
    "serviceAccount": {"create": True, "annotations": {"example.com/role": "gateway"}},
    "gateway": {
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
    "monitor": {
        "enabled": True,
        "labels": {"release": "prometheus"},
        "bearerTokenSecret": {"name": "metrics", "key": "token"},
        "rules": True,
        "dashboard": True,
    },
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


def notes(values: dict[str, Any]) -> str:
    """What Helm prints after an installation of these values."""
    with helm_python.Chart.load(str(CHART)) as chart:
        return str(chart.render(values, name="prod", namespace="llm")["coe/templates/NOTES.txt"])


def gateway(objects: list[dict[str, Any]]) -> dict[str, Any]:
    pod: dict[str, Any] = of(objects, "Deployment", "prod-coe")["spec"]["template"]
    return pod


@pytest.mark.parametrize("values", [{"experts": EXPERTS}, EVERYTHING], ids=["least", "everything"])
@pytest.mark.parametrize("version", KUBERNETES)
def test_helm_and_kubernetes_accept_every_object(values: dict[str, Any], version: str) -> None:
    assert not [m for m in helm_python.lint(str(CHART), values, strict=True)["messages"] if m["severity"] > 1]
    objects = rendered(values)
    assert len(objects) > 4
    for one in objects:
        if one["kind"] not in OF_OTHERS:
            kubernetes_validate.validate(one, version, strict=True)


def test_the_declaration_arrives_as_it_was_written(tmp_path: Path) -> None:
    written = tmp_path / "experts.yaml"
    written.write_text(of(rendered(EVERYTHING), "ConfigMap", "prod-coe")["data"]["experts.yaml"])
    assert load(written, environ={}).expert_names == ("coder", "mathematician", "generalist")


def test_a_pod_may_do_little_and_has_time_to_drain() -> None:
    pod = gateway(rendered(EVERYTHING))["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["automountServiceAccountToken"] is False
    for container in pod["containers"]:
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


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({}, r"--set-file experts=experts\.yaml"),
        ({"experts": EXPERTS, "gateway": {"replicas": "two"}}, "replicas"),
        ({"experts": EXPERTS, "vllm": [{"model": "m"}]}, "name"),
        ({"experts": EXPERTS, "gatway": {}}, "gatway"),
        ({"experts": EXPERTS, "monitor": {"enabled": True}}, r"monitor\.bearerTokenSecret"),
    ],
)
def test_values_that_cannot_be_meant_are_refused(values: dict[str, Any], why: str) -> None:
    with pytest.raises(helm_python.HelmError, match=why):
        rendered(values)


@pytest.mark.parametrize(
    "line", ["", "artifacts: folder", "artifacts: redis://redis:6379/0", 'artifacts: "rediss://r"']
)
def test_the_notes_warn_where_gateways_would_share_nothing(line: str) -> None:
    assert ("each pod keeps its own" in notes({"experts": f"{EXPERTS}\n{line}\n"})) == ("redis" not in line)


NO_NAMESPACE: dict[str, Any] = {"namespaceSelector": {}}


@pytest.mark.parametrize("name", ["ingress", "monitor"])
def test_the_ingress_controller_and_prometheus_reach_the_gateway_from_other_namespaces(name: str) -> None:
    only = {"experts": EXPERTS, name: EVERYTHING[name]}
    narrowed = {"experts": EXPERTS, name: EVERYTHING[name] | {"namespace": "edge"}}
    assert allowed({"experts": EXPERTS}) == [{"podSelector": {}}]
    assert allowed(only) == [{"podSelector": {}}, NO_NAMESPACE]
    edge = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "edge"}}}
    assert allowed(narrowed) == [{"podSelector": {}}, edge]
    assert allowed(EVERYTHING) == [*EVERYTHING["networkPolicy"]["from"], NO_NAMESPACE, NO_NAMESPACE]
    assert f"{name}.namespace" in notes(only)
    assert "the namespace edge" in notes(narrowed)


def allowed(values: dict[str, Any]) -> list[dict[str, Any]]:
    """The peers that may reach the gateway."""
    (rule,) = of(rendered(values), "NetworkPolicy", "prod-coe")["spec"]["ingress"]
    peers: list[dict[str, Any]] = rule["from"]
    return peers


def test_pods_of_the_gateway_and_of_the_job_have_what_is_declared_for_them() -> None:
    objects = rendered(EVERYTHING)
    job = of(objects, "CronJob")["spec"]["jobTemplate"]["spec"]["template"]
    assert of(objects, "ServiceAccount")["metadata"]["annotations"] == EVERYTHING["serviceAccount"]["annotations"]
    for pod in (gateway(objects), job):
        (container,) = pod["spec"]["containers"]
        assert EVERYTHING["podAnnotations"].items() <= pod["metadata"]["annotations"].items()
        assert pod["spec"]["serviceAccountName"] == of(objects, "ServiceAccount")["metadata"]["name"]
        for key, entries in (("env", "extraEnv"), ("volumeMounts", "extraVolumeMounts")):
            assert container[key][-1:] == EVERYTHING[entries]
        assert pod["spec"]["volumes"][-1:] == EVERYTHING["extraVolumes"]


def test_rules_and_dashboard_are_those_of_the_repository_and_name_the_job_that_is_scraped(tmp_path: Path) -> None:
    yaml = YAML(typ="safe")
    objects = rendered(EVERYTHING)
    rule = of(objects, "PrometheusRule")
    assert rule["spec"] == yaml.load(ROOT / "deploy" / "prometheus" / "rules.yml")
    assert rule["metadata"]["labels"].items() >= EVERYTHING["monitor"]["labels"].items()
    dashboard = of(objects, "ConfigMap", "-dashboard")["data"]["coe.json"]
    assert dashboard == (ROOT / "deploy" / "grafana" / "coe.json").read_text()
    assert {"PrometheusRule", "ServiceMonitor"}.isdisjoint(entry["kind"] for entry in rendered({"experts": EXPERTS}))
    label = of(objects, "ServiceMonitor")["spec"]["jobLabel"]
    job = of(objects, "Service", "prod-coe")["metadata"]["labels"][label]
    expressions = " ".join(one["expr"] for one in rule["spec"]["groups"][0]["rules"])
    assert set(re.findall(r'job="(\w+)"', expressions)) == {job}
    with tarfile.open(helm_python.package(str(CHART), destination=str(tmp_path))) as archive:
        assert {member.name for member in archive if member.isfile()} >= {"coe/files/rules.yml", "coe/files/coe.json"}


@pytest.mark.parametrize(
    ("line", "changed", "restarts"),
    [
        ("rate: 0.02", "rate: 0.03", False),
        ("redis:6379/0", "redis:6379/3", True),
        ("redis:6379/1", "redis:6379/3", True),
        ("version: 1", "version: 1\nartifacts: redis://redis:6379/0", True),
    ],
    ids=["policy", "log", "access.counters", "artifacts"],
)
def test_pods_start_again_only_for_a_declaration_that_no_reload_applies(
    line: str, changed: str, restarts: bool
) -> None:
    texts = (EXPERTS, EXPERTS.replace(line, changed))
    before, after = (gateway(rendered({"experts": text}))["metadata"]["annotations"] for text in texts)
    assert (before != after) == restarts
