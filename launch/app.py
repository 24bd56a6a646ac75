"""The commands of `mirada`: read the arguments, check the recipe, start the program that does the work."""

from __future__ import annotations

import functools
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from launch.attention_search.app import search
from launch.doctor.app import add_commands as add_doctor
from launch.following.app import add_commands as add_following
from launch.programs import become_program
from launch.submission.app import launch_app

if TYPE_CHECKING:
    from configs.load import Loaded

app = typer.Typer(
    name="mirada",
    help="Pretrain vision Transformers from sharded images, and teach small CNNs to look where they look.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(help="Look at recipes.", no_args_is_help=True)
app.add_typer(config_app, name="config")
app.add_typer(launch_app, name="launch")

_PASS_THROUGH: dict[str, Any] = {
    "add_help_option": False,
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True},
}
_PROGRAMS = ("pretrain", "finetune")
_PROGRAM_OF_NAME = {"pretrain": "pretrain", "finetune": "finetune", "search": "pretrain"}
"""How names of recipes and their folders begin, and which program is for them."""

Recipe = Annotated[str, typer.Argument(metavar="RECIPE", help="YAML file, yours or one below configs/.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings that replace the recipe's.")
]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Run folder. Default: runs/RECIPE.")]
Fresh = Annotated[
    bool, typer.Option("--fresh", help="Start anew instead of resuming what the run folder holds.")
]
Program = Annotated[
    str | None, typer.Option("--program", help="pretrain or finetune; default: told by the recipe's path.")
]
Ranks = Annotated[
    int | None, typer.Option("--ranks", min=1, metavar="N", help="Local processes. Default: train.ranks.")
]
SharingRanks = Annotated[
    int, typer.Option("--ranks", min=1, metavar="N", help="Local processes that share the images.")
]


def run() -> NoReturn:
    """Runs the command line; a user's mistake ends with a message and exit code 2."""
    try:
        app()
    except Exception as failure:
        # NOTE: imported late: it brings pydantic, and `mirada --help` has to be quick.
        from configs.exit_code import run_main

        run_main(functools.partial(_reraise, failure))
    raise SystemExit(0)


def _reraise(failure: Exception) -> NoReturn:
    raise failure


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        try:
            typer.echo(f"mirada {metadata.version('mirada')}")
        except metadata.PackageNotFoundError:
            typer.echo("mirada (not installed: run from a checkout)")
        raise typer.Exit


@app.callback()
def mirada(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Holds the options that belong to no command."""


@app.command(**_PASS_THROUGH)
def data(context: typer.Context) -> None:
    """Build, index, verify and inspect shards of images."""
    become_program("data_pipeline", context.args)


@config_app.command("show")
def show_config(
    recipe: Recipe,
    overrides: Overrides = None,
    program: Program = None,
) -> None:
    """Print the effective config of a recipe, with the origin of each value."""
    loaded = _load(_program_of(recipe, program), recipe, overrides)
    typer.echo(loaded.annotated_yaml(), nl=False)


@app.command()
def pretrain(
    recipe: Recipe, overrides: Overrides = None, out: Out = None, fresh: Fresh = False, ranks: Ranks = None
) -> None:
    """Train a model from a stream of labelled images; run again to resume."""
    _train("pretrain", recipe, overrides or [], out=out, fresh=fresh, ranks=ranks)


@app.command()
def finetune(
    recipe: Recipe, overrides: Overrides = None, out: Out = None, fresh: Fresh = False, ranks: Ranks = None
) -> None:
    """Fine-tune a released checkpoint, or distil it into a student; run again to resume."""
    _train("finetune", recipe, overrides or [], out=out, fresh=fresh, ranks=ranks)


@app.command()
def teach(
    recipe: Recipe,
    out: Annotated[Path, typer.Option("--out", metavar="CACHE", help="Folder for the answers.")],
    overrides: Overrides = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, metavar="E", help="Of the run. Default: all of them.")
    ] = None,
    top: Annotated[
        int | None, typer.Option(min=1, metavar="K", help="Classes whose logits are kept. Default: 10.")
    ] = None,
    grid: Annotated[
        int | None, typer.Option(min=1, metavar="G", help="Most places on a side of a map. Default: 7.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, metavar="B", help="Images per forward. Default: 64.")
    ] = None,
    ranks: Ranks = None,
) -> None:
    """Keep what the teacher of a recipe says of every crop, for any number of students; run again to go on."""
    options = {"--epochs": epochs, "--top": top, "--grid": grid, "--batch-size": batch_size}
    given = [f"{name}={value}" for name, value in options.items() if value is not None]
    changes = overrides or []
    arguments = [recipe, *changes, "--out", str(out), *given]
    _start_ranks(
        "finetune.teach",
        arguments,
        program="finetune",
        recipe=recipe,
        overrides=changes,
        out=out,
        ranks=ranks,
    )


@app.command()
def plan(
    recipe: Recipe,
    overrides: Overrides = None,
    nodes: Annotated[int, typer.Option(min=1, metavar="N", help="Machines.")] = 1,
    gpus_per_node: Annotated[int, typer.Option(min=1, metavar="G", help="GPUs of each.")] = 1,
    gpu: Annotated[str | None, typer.Option(metavar="NAME", help="Kind: h100, a100, l40s, ...")] = None,
    memory_gb: Annotated[
        float | None, typer.Option(min=1, metavar="X", help="GiB of each; default: that of --gpu.")
    ] = None,
    peak_tflops: Annotated[
        float | None, typer.Option(min=0.1, metavar="X", help="1e12 FLOP/s of each; default: of --gpu.")
    ] = None,
    mfu: Annotated[float, typer.Option(min=0.001, max=1.0, help="Share of the peak that is reached.")] = 0.4,
    hours: Annotated[float | None, typer.Option(min=0.0, metavar="LIMIT", help="Most wall time.")] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, metavar="M", help="Plan for so many samples, without an index.")
    ] = None,
    shards: Annotated[int | None, typer.Option(min=1, metavar="K", help="With --samples.")] = None,
    classes: Annotated[int, typer.Option(min=1, metavar="C", help="With --samples.")] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="Every number, as JSON.")] = False,
    program: Program = None,
) -> None:
    """Say what a run needs (memory, steps, FLOPs, hours) before it is submitted; 2 if it cannot fit."""
    options = {
        "--nodes": nodes,
        "--gpus-per-node": gpus_per_node,
        "--gpu": gpu,
        "--memory-gb": memory_gb,
        "--peak-tflops": peak_tflops,
        "--mfu": mfu,
        "--hours": hours,
        "--samples": samples,
        "--shards": shards,
        "--classes": classes,
    }
    given = [f"{name}={value}" for name, value in options.items() if value is not None]
    given += ["--json"] if as_json else []
    become_program(f"{_program_of(recipe, program)}.plan", [recipe, *(overrides or []), *given])


@app.command(**_PASS_THROUGH)
def advise(context: typer.Context) -> None:
    """Propose a recipe for a corpus, this hardware and a latency, and say why."""
    become_program("pretrain.advise", context.args)


@app.command(**_PASS_THROUGH)
def evaluate(context: typer.Context, ranks: SharingRanks = 1) -> None:
    """Measure released checkpoints on every image of a split, exactly once."""
    from launch.local import is_inside_job, run_ranks

    if ranks == 1 or is_inside_job(os.environ):
        become_program("finetune.evaluation", context.args)
    again = shlex.join(["mirada", *sys.argv[1:]])
    raise typer.Exit(run_ranks("finetune.evaluation", context.args, num_ranks=ranks, again=again))


@app.command(**_PASS_THROUGH)
def attend(context: typer.Context) -> None:
    """Draw where released checkpoints look."""
    become_program("finetune.attend", context.args)


@app.command(**_PASS_THROUGH)
def export(context: typer.Context) -> None:
    """Write a released checkpoint in the form another program reads."""
    become_program("finetune.export", context.args)


@app.command(**_PASS_THROUGH)
def predict(context: typer.Context) -> None:
    """Say what is on image files, by a released or exported checkpoint."""
    become_program("finetune.predict", context.args)


@app.command(**_PASS_THROUGH)
def report(context: typer.Context) -> None:
    """Write a self-contained HTML report of run folders."""
    become_program("engine.results.report", context.args)


@app.command(**_PASS_THROUGH)
def sync(context: typer.Context) -> None:
    """Send a run folder's events to MLflow."""
    become_program("engine.tracking.command", context.args)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for all it makes.")] = Path(
        "mirada-demo"
    ),
) -> None:
    """Sample images to a distilled student and a report, in a few minutes; run again to resume."""
    from launch.demo import run_demo

    raise typer.Exit(run_demo(out))


app.command()(search)
add_following(app)
add_doctor(app)


def _train(
    program: str, recipe: str, overrides: list[str], *, out: Path | None, fresh: bool, ranks: int | None
) -> None:
    """Starts a training program in its run folder."""
    folder = out or Path("runs") / Path(recipe).stem
    arguments = [recipe, *overrides, "--out", str(folder), *(["--fresh"] if fresh else [])]
    _start_ranks(
        program, arguments, program=program, recipe=recipe, overrides=overrides, out=folder, ranks=ranks
    )


def _start_ranks(
    module: str,
    arguments: list[str],
    *,
    program: str,
    recipe: str,
    overrides: list[str],
    out: Path,
    ranks: int | None,
) -> NoReturn:
    """Becomes a rank under torchrun and srun; elsewhere checks the recipe, one of `program`, and starts the ranks."""
    from launch.local import count_ranks, is_inside_job, run_ranks

    if is_inside_job(os.environ):
        become_program(module, arguments)
    requested = _load(program, recipe, overrides).config.train.ranks
    again = ["mirada", *(part for part in sys.argv[1:] if part != "--fresh")]
    code = run_ranks(
        module, arguments, num_ranks=ranks or count_ranks(requested), out=out, again=shlex.join(again)
    )
    raise typer.Exit(code)


def _load(program: str, recipe: str, overrides: list[str] | None) -> Loaded[Any]:
    from launch.submission.request import load_recipe

    return load_recipe(program, recipe, overrides or [])


def _program_of(recipe: str, given: str | None) -> str:
    """What was `given`; else ``configs/pretrain/x.yaml`` and ``configs/smoke/pretrain_vit.yaml`` are pretrain's."""
    from configs.base import ConfigError

    if given is not None:
        if given not in _PROGRAMS:
            raise ConfigError(f"no program {given!r}; allowed are {' and '.join(map(repr, _PROGRAMS))}")
        return given
    for part in reversed(Path(recipe).parts):
        for name, program in _PROGRAM_OF_NAME.items():
            if part.startswith(name):
                return program
    raise ConfigError(
        f"cannot tell which program {recipe!r} is for: say --program pretrain or --program finetune"
    )
