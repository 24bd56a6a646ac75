"""Release: the end of a run, a folder with weights, config and model card; timm loads it without Mirada's engine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from configs.attention import AttentionConfig
from configs.training import ModelConfig, RunConfig
from data_pipeline.whole_file import sync_folder
from engine.results.evaluate import Scores
from engine.saving.durable import flush_file
from models.build import CONFIG_FILE, SIGNATURE, own_module, resolve_release
from models.carrier import Companion
from models.checkpoint_file import is_weights_file
from models.release import save_companion, save_for_timm

_LOAD = """\
```python
import timm
{registration}
model = timm.create_model("local-dir:{folder}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
```
"""

_ROUNDED = """
It was trained, and scored, with attention in 8 bits (`kernel: float8`). timm computes it in full precision, and its
logits differ a little; those of the training come from `mirada.models.build.load_release("{folder}")`.

"""

_LOAD_OURS = """\
Its attention is not all timm's, so Mirada builds it:

```python
from mirada.models.build import load_release

model = load_release("{folder}").eval()
```
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What a release was made by."""

    run_id: str
    command: str
    """As one would type it."""
    data_digest: str
    """Of the index of the training images."""
    step: int
    """After which the weights were taken."""


def write_release(
    folder: Path,
    *,
    model: nn.Module,
    weights: Mapping[str, Tensor],
    config: RunConfig,
    classes: Sequence[str],
    origin: Origin,
    scores: Scores | None,
    companion: Companion | None = None,
) -> Path:
    """Writes the release aside and puts it in place of a former one; `weights` are `Engine.release_weights()`."""
    aside = folder.with_name(f".{folder.name}-partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    data = config.data
    save_for_timm(
        model,
        weights,
        aside,
        input_size=(data.channels, data.image_size, data.image_size),
        mean=data.mean,
        std=data.std,
        interpolation=data.interpolation,
        eval_crop=data.eval_crop,
        classes=classes,
    )
    if companion is not None:
        save_companion(companion, aside)
    card = _model_card(folder, config, classes, origin=origin, scores=scores, companion=companion)
    (aside / "README.md").write_text(card)
    _sign(aside / CONFIG_FILE, origin.run_id, config.model.attention)
    for path in aside.iterdir():
        flush_file(path)
    sync_folder(aside)
    _replace_folder(aside, folder)
    return folder


def run_of_release(reference: str) -> str | None:
    """The `run_id` of the run that made a release; None where it was none of Mirada's, or none is known."""
    if is_weights_file(reference):
        return None
    resolved = resolve_release(reference)
    if not resolved.startswith("local-dir:"):
        return None
    content = json.loads((Path(resolved.removeprefix("local-dir:")) / CONFIG_FILE).read_text())
    run_id = content.get(SIGNATURE, {}).get("run_id")
    return None if run_id is None else str(run_id)


def _sign(config_path: Path, run_id: str, attention: AttentionConfig) -> None:
    """Adds a key of ours, which timm leaves alone: the run, and what of its attention is not timm's."""
    content = json.loads(config_path.read_text())
    # A kernel is how things are computed and stays behind, but for the one that computes something else.
    kept = {"gates", "search", "two_stage", "dynamic", *(["kernel"] if attention.kernel == "float8" else [])}
    lasting = attention.model_dump(mode="json", include=kept, exclude_defaults=True)
    ours = {"run_id": run_id, **({"attention": lasting} if lasting else {})}
    config_path.write_text(json.dumps({**content, SIGNATURE: ours}, indent=2) + "\n")


def _replace_folder(new: Path, folder: Path) -> None:
    former = folder.with_name(f".{folder.name}-former")
    shutil.rmtree(former, ignore_errors=True)
    if folder.exists():
        folder.rename(former)
    new.rename(folder)
    sync_folder(folder.parent)
    shutil.rmtree(former, ignore_errors=True)


def _model_card(
    folder: Path,
    config: RunConfig,
    classes: Sequence[str],
    *,
    origin: Origin,
    scores: Scores | None,
    companion: Companion | None,
) -> str:
    """A short README with the front matter that model hubs read."""
    data = config.data
    what = "averaged over steps (EMA)" if config.train.ema is not None else "of the last step"
    rows = [
        ("architecture", f"timm `{config.model.name}`"),
        ("input", f"{data.channels} x {data.image_size} x {data.image_size}"),
        ("normalization", f"mean {_list(data.mean)}, std {_list(data.std)}, of pixels scaled to 0..1"),
        ("classes", _list_classes(classes)),
        ("data", f"`{data.train}`, index digest `{origin.data_digest}`"),
        ("training", f"{origin.step} steps of {config.train.global_batch} images; weights {what}"),
    ]
    if companion is not None:
        rows.append(
            (companion.name, f"`{companion.name}.safetensors`: the tower that reads, and the projections")
        )
    if scores is not None:
        rows.append(("validation", f"{scores} on {scores.num_images} images of `{data.evaluated}`"))
    task = "image-classification" if classes else "image-feature-extraction"
    table = "\n".join(f"| {name} | {text} |" for name, text in rows)
    return (
        f"---\ntags: [{task}, timm]\nlibrary_name: timm\npipeline_tag: {task}\n---\n"
        f"# {config.model.name}, trained with Mirada\n\n| | |\n| --- | --- |\n{table}\n\n"
        f"{_loading(folder.name, config.model)}\nMade by:\n\n```\n{origin.command}\n```\n"
    )


def _list_classes(classes: Sequence[str]) -> str:
    if not classes:
        return (
            "none: pooled features; give `create_model` a `num_classes` for a fresh classifier to fine-tune"
        )
    return f"{len(classes)}: {', '.join(classes[:10])}{' ...' if len(classes) > 10 else ''}"


def _loading(folder: str, model: ModelConfig) -> str:
    architecture, attention = model.name, model.attention
    lasting = (attention.search, attention.two_stage, attention.dynamic)
    if attention.gates or any(part is not None for part in lasting):
        return _LOAD_OURS.format(folder=folder)
    ours = own_module(architecture)
    registration = (
        f"import mirada.{ours}  # registers {architecture!r}, which timm does not have\n" if ours else ""
    )
    rounded = _ROUNDED.format(folder=folder) if attention.kernel == "float8" else ""
    return _LOAD.format(folder=folder, registration=registration) + rounded


def _list(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)
