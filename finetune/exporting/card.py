"""The model card of an export: what the release says, and licence, metrics, calibration, teacher and recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from configs.base import ConfigError
from engine.results.run_record import read_run
from finetune.evaluating.tracking import run_folder_of
from models.build import CONFIG_FILE, resolve_release

_FENCE = "---\n"
_UNSTATED = "not stated"
_NUMBERS = (
    ("top1", "top-1, %", ".2f"),
    ("top5", "top-5, %", ".2f"),
    ("ece", "expected calibration error (15 bins)", ".4f"),
    ("corrupted_top1", "top-1 under corruption, %", ".2f"),
    ("parameters", "parameters", ",d"),
    ("flops", "FLOPs of one image", ",d"),
    ("latency_ms", "ms for one image", ".3g"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """A network that a run learned from, or started from."""

    role: str
    reference: str
    license: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a card gains beside what the release says of itself."""

    license: str | None = None
    """As the hub spells it: ``apache-2.0``."""
    data: str = ""
    """What `row` was measured on, with its digest."""
    row: Mapping[str, Any] | None = None
    """Of `mirada evaluate --json`."""
    teachers: Sequence[Teacher] = ()
    recipe: str = ""
    """The effective config, as YAML."""


def gather_facts(reference: str, *, license: str | None, evaluation: Path | None) -> Facts:
    """What run folder and evaluation know; ConfigError where the evaluation is not one of this checkpoint."""
    run_dir = run_folder_of(reference)
    run = None if run_dir is None else read_run(run_dir)
    content = {} if evaluation is None else _read_evaluation(evaluation)
    origins: Mapping[str, Mapping[str, str]] = {} if run is None else run.start.get("origins", {})
    return Facts(
        license=license,
        data=f"`{content.get('data', '')}`, index digest `{content.get('data_digest', _UNSTATED)}`",
        row=_row_of(reference, content, evaluation) if content else None,
        teachers=[
            Teacher(role=role, reference=origin["path"], license=license_of(origin["path"]))
            for role, origin in origins.items()
        ],
        recipe="" if run is None else run.config_text,
    )


def complete_card(text: str, facts: Facts) -> str:
    """A card with further front matter and sections."""
    front, body = split_card(text)
    if facts.license is not None:
        front["license"] = facts.license
    parts = [body.rstrip() or "# A network exported by Mirada", _license_section(facts)]
    if facts.row is not None:
        front["metrics"] = ["accuracy"]
        parts.append(_metrics_section(facts.row, facts.data))
    if facts.recipe:
        parts.append(f"## Recipe\n\n```yaml\n{facts.recipe.rstrip()}\n```")
    header = f"{_FENCE}{yaml.safe_dump(front, sort_keys=False)}{_FENCE}" if front else ""
    return header + "\n\n".join(parts) + "\n"


def split_card(text: str) -> tuple[dict[str, Any], str]:
    """Front matter and the rest; a front matter that cannot be read stays in the rest."""
    _, fence, rest = text.partition(_FENCE)
    block, end, body = rest.partition(f"\n{_FENCE}")
    if not text.startswith(_FENCE) or not fence or not end:
        return {}, text
    try:
        front = yaml.safe_load(block)
    except yaml.YAMLError:
        return {}, text
    return (dict(front), body) if isinstance(front, dict) else ({}, text)


def license_of(reference: str) -> str:
    """What a release says its licence is, in its card or in timm's part of its config."""
    try:
        resolved = resolve_release(reference)
    except ConfigError:
        return _UNSTATED
    if not resolved.startswith("local-dir:"):
        return _UNSTATED
    folder = Path(resolved.removeprefix("local-dir:"))
    card = folder / "README.md"
    front = split_card(card.read_text(errors="replace"))[0] if card.is_file() else {}
    config = json.loads((folder / CONFIG_FILE).read_text())
    return str(front.get("license") or config.get("pretrained_cfg", {}).get("license") or _UNSTATED)


def _license_section(facts: Facts) -> str:
    lines = ["## Licence", "", f"This network: {facts.license or _UNSTATED}."]
    for teacher in facts.teachers:
        role = {"start": "Its first weights"}.get(teacher.role, f"Its {teacher.role}")
        lines.append(f"{role}, `{teacher.reference}`: {teacher.license}.")
    return "\n".join(lines)


def _metrics_section(row: Mapping[str, Any], data: str) -> str:
    lines = [f"| {label} | {row[key]:{form}} |" for key, label, form in _NUMBERS if row.get(key) is not None]
    bins = [
        f"| {part['confidence']:.3f} | {part['accuracy']:.3f} | {part['num_images']:,d} |"
        for part in row.get("reliability", ())
        if part["num_images"]
    ]
    table = "\n".join(["| | |", "| --- | --- |", *lines])
    calibration = "\n".join(["| confidence | accuracy | images |", "| --- | --- | --- |", *bins])
    return f"## Evaluation\n\nOn {data}:\n\n{table}\n\n## Calibration\n\n{calibration}"


def _read_evaluation(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as failure:
        raise ConfigError(f"cannot read {str(path)!r} as JSON: {failure}") from failure
    if not isinstance(content, dict) or not isinstance(content.get("rows"), list):
        raise ConfigError(f"{str(path)!r} was not written by `mirada evaluate --json`: it has no rows")
    return content


def _row_of(reference: str, content: Mapping[str, Any], path: Path | None) -> Mapping[str, Any]:
    wanted = resolve_release(reference)
    for row in content["rows"]:
        try:
            if resolve_release(str(row.get("path", ""))) == wanted:
                return dict(row)
        except ConfigError:  # one that is gone since
            continue
    paths = ", ".join(repr(str(row.get("path"))) for row in content["rows"])
    raise ConfigError(f"{str(path)!r} has no row of {reference!r}, only of {paths}: evaluate it first")
