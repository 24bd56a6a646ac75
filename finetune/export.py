"""python -m finetune.export CKPT OUT --format timm|onnx|onnx-int8|torch|mlflow: a release for other programs."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from configs.base import ConfigError
from configs.exit_code import run_main
from finetune.exporting import formats
from finetune.exporting.card import gather_facts
from finetune.exporting.hub import parse_hub_name, push_folder

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


class Format(str, Enum):
    """What to write."""

    TIMM = "timm"
    ONNX = "onnx"
    ONNX_INT8 = "onnx-int8"
    TORCH = "torch"
    MLFLOW = "mlflow"


@app.command()
def main(
    source: Annotated[str, typer.Argument(metavar="CKPT", help="Run folder or release folder.")],
    destination: Annotated[Path, typer.Argument(metavar="OUT", help="New folder, or .onnx or .pt2 file.")],
    format: Annotated[Format, typer.Option(help="What to write.")] = Format.TIMM,
    data: Annotated[
        str | None, typer.Option(help="onnx-int8: folder of indexed shards to calibrate with and compare on.")
    ] = None,
    license: Annotated[
        str | None, typer.Option(metavar="ID", help="timm, mlflow: licence for the model card.")
    ] = None,
    evaluation: Annotated[
        Path | None, typer.Option(metavar="JSON", help="timm, mlflow: of mirada evaluate, for the card.")
    ] = None,
    register: Annotated[
        str | None, typer.Option(metavar="NAME@ALIAS", help="mlflow: register, as teacher or student.")
    ] = None,
    push: Annotated[
        str | None, typer.Option(metavar="hf-hub:OWNER/NAME", help="timm: push to the hub too.")
    ] = None,
) -> None:
    """Write a release for other programs, after checking that what was written gives the same logits."""
    _check_options(format, data=data, register=register, push=push, license=license, evaluation=evaluation)
    is_pushed = push is not None
    for line in _export(
        source, destination, format, data, license, evaluation, register, is_pushed=is_pushed
    ):
        typer.echo(line)
    if push is not None:
        typer.echo(f"pushed: {push_folder(destination, parse_hub_name(push))}")


def _export(
    source: str,
    destination: Path,
    format: Format,
    data: str | None,
    license: str | None,
    evaluation: Path | None,
    register: str | None,
    *,
    is_pushed: bool,
) -> list[str]:
    match format:
        case Format.ONNX:
            return formats.to_onnx(source, destination)
        case Format.ONNX_INT8:
            return formats.to_onnx_int8(source, destination, data)
        case Format.TORCH:
            return formats.to_torch(source, destination)
    facts = gather_facts(source, license=license, evaluation=evaluation)
    if format is Format.TIMM:
        return formats.to_timm(source, destination, facts, is_pushed=is_pushed)
    registered = formats.Registered.parse(register) if register is not None else None
    return formats.to_mlflow(source, destination, facts, registered)


def _check_options(format: Format, *, push: str | None, register: str | None, **others: object) -> None:
    """Every option that this format has no use for, said before anything is written."""
    allowed = {
        "data": (Format.ONNX_INT8,),
        "license": (Format.TIMM, Format.MLFLOW),
        "evaluation": (Format.TIMM, Format.MLFLOW),
        "register": (Format.MLFLOW,),
        "push": (Format.TIMM,),
    }
    given = {"push": push, "register": register, **others}
    mistakes = [
        f"--{name} belongs to --format {' or '.join(kind.value for kind in allowed[name])}, not to {format.value}"
        for name, value in given.items()
        if value is not None and format not in allowed[name]
    ]
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    if push is not None:
        parse_hub_name(push)
    if register is not None:
        formats.Registered.parse(register)


if __name__ == "__main__":
    run_main(lambda: app(prog_name="mirada export"))
