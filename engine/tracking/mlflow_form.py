"""What a run's events look like in MLflow: names it allows, params, tags and data sets."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from engine.tracking.log_reader import Event

RUN_ID_TAG = "mirada.run_id"
TAG_CHARS = 5000
"""MLflow takes 8000, older servers 5000."""

_PARAM_CHARS, _NAME_CHARS = 6000, 250
_MLFLOW_TAGS = {"source.name": "command", "source.git.commit": "commit"}
_NO_TAGS = {"time", "kind", "run_id", "name", "config", "versions", "datasets", "origins"}
_NAME_REFUSED = re.compile(r"[^\w\-. :/]", re.ASCII)


def allowed_name(key: str) -> str:
    """A name of a metric, param or tag without the characters that MLflow refuses."""
    return _NAME_REFUSED.sub("_", key)[:_NAME_CHARS]


def milliseconds(event: Event) -> int:
    """When it happened, since 1970."""
    return int(event["time"] * 1000)


def text_of(value: object) -> str:
    """Strings as they are, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def params_of(event: Event) -> dict[str, str]:
    """The effective config of a "run" event, by dotted key."""
    config: Mapping[str, Any] = event.get("config", {}) if event["kind"] == "run" else {}
    return {allowed_name(key): text_of(value)[:_PARAM_CHARS] for key, value in config.items()}


def tags_of(event: Event) -> dict[str, str]:
    """What an event says about the run as a whole."""
    tags: dict[str, Any] = {}
    match event["kind"]:
        case "run":
            tags |= {_tag_name(key): value for key, value in event.items() if key not in _NO_TAGS}
            tags |= {f"version.{name}": version for name, version in event.get("versions", {}).items()}
            tags |= {f"mlflow.{name}": event.get(key) for name, key in _MLFLOW_TAGS.items()}
        case "checkpoint" | "release" as kind:
            tags[f"mirada.{kind}"] = event.get("path")
        case "kernels":
            tags["mirada.kernels"] = event.get("kernels")
        case "rolled_back":
            tags["mirada.rolled_back"] = f"from step {event.get('from')} to step {event.get('to')}"
        case "stopped":
            tags["mirada.stopped"] = event.get("reason")
        case "failed":
            tags["mirada.error"] = event.get("error")
    known = {name: value for name, value in tags.items() if value not in (None, "")}
    return {allowed_name(name): text_of(value)[:TAG_CHARS] for name, value in known.items()}


def origin_tags(event: Event) -> dict[str, str]:
    """Where a "run" event's teacher and first weights come from, and which runs made them."""
    tags: dict[str, str] = {}
    for role, origin in event.get("origins", {}).items():
        tags[f"mirada.{role}"] = origin["path"][:TAG_CHARS]
        if "run_id" in origin:
            tags[f"mirada.{role}_run_id"] = origin["run_id"]
    return tags


def datasets_of(events: Sequence[Event]) -> list[dict[str, str]]:
    """The indexes a run reads, in the words of `mlflow.entities.Dataset`, and `context`: training or validation."""
    return [
        {
            "name": dataset["name"],
            "digest": dataset["digest"],
            **_source(dataset["source"]),
            "profile": json.dumps({"num_samples": dataset["num_samples"]}),
            "context": dataset["context"],
        }
        for event in events
        for dataset in event.get("datasets", ())
    ]


def _source(place: str) -> dict[str, str]:
    """A place as MLflow's own kinds of data set sources write it."""
    scheme, separator, _ = place.partition("://")
    if not separator:
        return {"source_type": "local", "source": json.dumps({"uri": place})}
    if scheme in ("http", "https"):
        return {"source_type": "http", "source": json.dumps({"url": place})}
    return {"source_type": scheme, "source": json.dumps({"uri": place})}


def _tag_name(key: str) -> str:
    return key if key.startswith("slurm.") else f"mirada.{key}"
