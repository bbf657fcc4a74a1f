"""What Helm asks of a Kubernetes API server in a dry run, with one Secret in it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson

KINDS = {
    "v1": ("ConfigMap", "Secret", "Service"),
    "apps/v1": ("Deployment",),
    "batch/v1": ("CronJob",),
    "networking.k8s.io/v1": ("NetworkPolicy",),
    "policy/v1": ("PodDisruptionBudget",),
}


class Kubernetes(ThreadingHTTPServer):
    """Serves the discovery of KINDS, and a Secret of version `secret_version` at `secret_path`. All else is 404."""

    daemon_threads = True

    def __init__(self, secret_path: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.secret_path = secret_path
        self.secret_version = "1"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, path: str) -> Any:
        """The JSON at a path; b"" for an empty OpenAPI document, None if there is nothing."""
        groups = [version.split("/") for version in KINDS if "/" in version]
        versions = [{"groupVersion": f"{name}/{version}", "version": version} for name, version in groups]
        fixed: dict[str, Any] = {
            "/version": {"major": "1", "minor": "30", "gitVersion": "v1.30.0"},
            "/api": {"kind": "APIVersions", "versions": ["v1"]},
            "/apis": {
                "kind": "APIGroupList",
                "groups": [
                    {"name": name, "versions": [version], "preferredVersion": version}
                    for (name, _), version in zip(groups, versions, strict=True)
                ],
            },
            "/openapi/v2": b"",
            self.secret_path: {
                "kind": "Secret",
                "apiVersion": "v1",
                "metadata": {"resourceVersion": self.secret_version},
            },
        }
        for version, kinds in KINDS.items():
            resources = [
                {"name": f"{kind.lower()}s", "namespaced": True, "kind": kind, "verbs": ["get"]} for kind in kinds
            ]
            place = f"/apis/{version}" if "/" in version else f"/api/{version}"
            fixed[place] = {"kind": "APIResourceList", "groupVersion": version, "resources": resources}
        return fixed.get(path)


class _Handler(BaseHTTPRequestHandler):
    server: Kubernetes

    def do_GET(self) -> None:
        content = self.server.answer(self.path.partition("?")[0])
        missing = {"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404}
        body = content if isinstance(content, bytes) else orjson.dumps(content or missing)
        self.send_response(404 if content is None else 200)
        self.send_header("content-type", "application/json" if body else "application/octet-stream")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@contextmanager
def serving_secret(namespace: str, name: str) -> Iterator[Kubernetes]:
    with Kubernetes(f"/api/v1/namespaces/{namespace}/secrets/{name}") as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
