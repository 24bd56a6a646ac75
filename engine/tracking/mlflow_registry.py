"""Released models as versions of a registered MLflow model; MLflow's ``models:/NAME/latest`` is the newest of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

TOP1_TAG = "mirada.top1"
BEST_ALIAS = "best"


def register(client: MlflowClient, name: str, *, run: Run, tags: Mapping[str, str]) -> str:
    """Gives the release of a run a version and moves the alias `best`; returns the version.

    A run has one version however often this is called, and `best` depends on the versions alone, not on the order in
    which they came: the highest top-1, the older one of two that are equal.
    """
    create_model(client, name)
    versions = list(_versions(client, name))
    own = next((version for version in versions if version.run_id == run.info.run_id), None)
    if own is None:
        source = f"{run.info.artifact_uri}/release"
        own = client.create_model_version(name, source, run_id=run.info.run_id, tags=dict(tags))
        versions.append(own)
    for key, text in tags.items():
        if own.tags.get(key) != text:
            client.set_model_version_tag(name, own.version, key, text)
    top1 = {int(version.version): version.tags.get(TOP1_TAG) for version in versions}
    top1[int(own.version)] = tags.get(TOP1_TAG)
    scored = {version: float(text) for version, text in top1.items() if text is not None}
    if scored:
        best = max(sorted(scored), key=lambda version: scored[version])
        client.set_registered_model_alias(name, BEST_ALIAS, str(best))
    return str(own.version)


def create_model(client: MlflowClient, name: str) -> None:
    """Makes a registered model of this name, unless there is one."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as failure:
        if failure.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _versions(client: MlflowClient, name: str) -> Iterator[ModelVersion]:
    token: str | None = None
    while True:
        page = client.search_model_versions(f"name = '{name}'", page_token=token)
        yield from page
        token = page.token
        if not token:
            return
