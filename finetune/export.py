"""python -m finetune.export RUN_OR_RELEASE DEST: a verified copy of a release that plain timm loads."""

from __future__ import annotations

import filecmp
import os
import shutil
from pathlib import Path
from typing import Annotated

import torch
import typer

from configs.base import ConfigError
from configs.exit_code import run_main
from models.build import InputSpec, input_spec, load_release, resolve_release

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def export_release(reference: str, destination: Path) -> InputSpec:
    """Copies a release to a new folder, whole or not at all, and returns what the network in it takes."""
    resolved = resolve_release(reference)
    if not resolved.startswith("local-dir:"):
        raise ConfigError(
            f"{reference!r} is no folder: give a run folder with a release, or a release folder"
        )
    source = Path(resolved.removeprefix("local-dir:"))
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise ConfigError(f"{str(destination)!r} exists already: give a new folder, or remove it first")
    destination.parent.mkdir(parents=True, exist_ok=True)
    aside = destination.with_name(f".{destination.name}.{os.getpid()}")
    try:
        shutil.copytree(source, aside)
        _compare(source, aside)
        spec = verify_release(str(aside))
        aside.replace(destination)  # takes the place of an empty folder too
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return spec


@torch.no_grad()
def verify_release(reference: str) -> InputSpec:
    """Loads a release as timm does and runs it once; ConfigError where the file, the config or the outputs are bad."""
    model = load_release(reference).eval()
    spec = input_spec(model)
    broken = [name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()]
    if broken:
        raise ConfigError(
            f"the weights of {reference!r} hold infinite or undefined numbers, first in {broken[0]!r}"
        )
    model(torch.zeros(1, spec.channels, spec.size, spec.size))
    return spec


@app.command()
def main(
    source: Annotated[str, typer.Argument(metavar="RUN_OR_RELEASE", help="Run folder or release folder.")],
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="New folder.")],
) -> None:
    """Copy a release to DEST after checking that it is whole and that timm can load it."""
    spec = export_release(source, destination)
    size = sum(path.stat().st_size for path in destination.rglob("*") if path.is_file())
    typer.echo(
        f"{destination}: {size / 1e6:.1f} MB, for images of {spec.channels} x {spec.size} x {spec.size}; load it with"
    )
    typer.echo(f"  timm.create_model('local-dir:{destination}', pretrained=True)")


def _compare(source: Path, copy: Path) -> None:
    names = [str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()]
    _, differing, missing = filecmp.cmpfiles(source, copy, names, shallow=False)
    if differing or missing:
        raise OSError(f"the copy of {str(source)!r} differs from it in {', '.join(differing + missing)}")


if __name__ == "__main__":
    run_main(lambda: app(prog_name="mirada export"))
