"""`mirada demo`: the embedded sample to a distilled student and a report, by the commands a user would type.

index, verify -> pretrain (teacher) -> finetune (student, control) -> evaluate -> attend -> report
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from launch.programs import ROOT, program_command, program_environment
from launch.supervise import INTERRUPTED, Command, run_together

_CLASS_NAMES = ROOT / "data_pipeline" / "sample" / "class_names.txt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One command of the demo and the file that shows it was done."""

    title: str
    arguments: tuple[str, ...]
    output: Path

    @property
    def command(self) -> str:
        """What a user would type."""
        return shlex.join(["mirada", *self.arguments])


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A command that ended well, as `commands.json` keeps it."""

    name: str
    command: str
    seconds: float


def run_demo(out: Path) -> int:
    """Runs the steps that are not done yet and shows the result; returns the exit code."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    record = out / "commands.json"
    steps = demo_steps(out)
    done = _read_done(record, steps)
    for number, step in enumerate(steps[len(done) :], start=len(done) + 1):
        console.print(f"\n[{number}/{len(steps)}] {step.title}", style="bold")
        console.print(f"$ {step.command}")
        start = time.monotonic()
        code = _run(step)
        if code != 0:
            console.print(
                f"\n{_ending(code)}; next start resumes: {shlex.join(['mirada', 'demo', '--out', str(out)])}"
            )
            return code
        done.append(Done(name=step.title, command=step.command, seconds=round(time.monotonic() - start, 2)))
        _write_done(record, done)
    _show_result(console, out, done)
    return 0


def demo_steps(out: Path) -> list[Step]:
    """Every command of the demo, in order."""
    data, teacher, student, control = (out / name for name in ("data", "teacher", "student", "control"))
    folders = (f"data.train={data / 'train'}", f"data.val={data / 'test'}")
    return [
        *(step for split in ("train", "test") for step in _data_steps(data, split)),
        _training("Pretrain the teacher, a small ViT", "pretrain", "pretrain/demo_vit", teacher, folders),
        _training(
            "Distil it into a CNN student with labels for one image in twenty",
            "finetune",
            "finetune/demo_student",
            student,
            (*folders, f"teacher.checkpoint={teacher / 'release'}"),
        ),
        _training(
            "Train the same student without a teacher: the control",
            "finetune",
            "finetune/demo_control",
            control,
            folders,
        ),
        *_result_steps(out, data / "test", (teacher, student, control)),
    ]


def _result_steps(out: Path, test: Path, runs: tuple[Path, Path, Path]) -> list[Step]:
    """What is made of teacher, student and control."""
    releases = [str(run / "release") for run in runs]
    return [
        Step(
            title="Evaluate the three on the test images",
            arguments=(
                "evaluate",
                *releases,
                "--data",
                str(test),
                "--json",
                str(out / "evaluation.json"),
                "--pictures",
                str(out / "pictures"),
            ),
            output=out / "evaluation.json",
        ),
        Step(
            title="Draw where teacher and student look",
            arguments=(
                "attend",
                *releases[:2],
                "--data",
                str(test),
                "--out",
                str(out / "attention.png"),
            ),
            output=out / "attention.png",
        ),
        Step(
            title="Write the report",
            arguments=(
                "report",
                *("--out", str(out / "report.html")),
                *map(str, runs),
                *("--evaluation", str(out / "evaluation.json")),
                *("--attention", str(out / "attention.png")),
                "--samples",
                *("--commands", str(out / "commands.json")),
                *("--title", "Mirada demo"),
            ),
            output=out / "report.html",
        ),
    ]


def _data_steps(data: Path, split: str) -> list[Step]:
    folder, index = str(data / split), data / split / "_info.json"
    names = ("--class-names", str(_CLASS_NAMES))
    return [
        Step(
            title=f"Index the {split} shards of the embedded sample",
            arguments=(
                "data",
                "index",
                f"mirada://sample/{split}",
                "--out",
                folder,
                "--split",
                split,
                *names,
            ),
            output=index,
        ),
        Step(
            title=f"Verify the {split} shards, every image decoded",
            arguments=("data", "verify", folder, "--deep"),
            output=index,
        ),
    ]


def _training(title: str, program: str, recipe: str, run: Path, overrides: Sequence[str]) -> Step:
    return Step(
        title=title,
        arguments=(program, f"configs/{recipe}.yaml", *overrides, "--out", str(run)),
        output=run / "release" / "model.safetensors",
    )


def _run(step: Step) -> int:
    """Runs a step as the user would, in a process of its own; Ctrl-C reaches it through us."""
    arguments = program_command("launch.cli", step.arguments)
    outcome = run_together([Command(arguments=arguments, environment=program_environment(os.environ))])
    if outcome.interrupted:
        return INTERRUPTED
    if outcome.code == 0 and not step.output.exists():
        sys.stderr.write(f"error: the command above ended well but made no {step.output}\n")
        return 1
    return outcome.code


def _ending(code: int) -> str:
    return "interrupted" if code == INTERRUPTED else f"this step ended with exit code {code}"


def _read_done(record: Path, steps: Sequence[Step]) -> list[Done]:
    """The steps from the first on that an earlier start has done with the same command."""
    entries = json.loads(record.read_text()) if record.is_file() else []
    done = []
    for step, entry in zip(steps, entries, strict=False):
        if entry["command"] != step.command or not step.output.exists():
            break
        done.append(Done(**entry))
    return done


def _write_done(record: Path, done: Sequence[Done]) -> None:
    record.parent.mkdir(parents=True, exist_ok=True)
    aside = record.with_suffix(".tmp")
    aside.write_text(json.dumps([asdict(entry) for entry in done], indent=2) + "\n")
    aside.replace(record)


def _show_result(console: Console, out: Path, done: Sequence[Done]) -> None:
    evaluation = json.loads((out / "evaluation.json").read_text())
    rows: dict[str, dict[str, Any]] = dict(
        zip(("teacher", "student", "control"), evaluation["rows"], strict=True)
    )
    console.print()
    console.print(_result_table(rows, evaluation["num_images"]))
    gain = rows["student"]["top1"] - rows["control"]["top1"]
    verdict = "distillation helped" if gain > 0 else "distillation did not help within this budget"
    mlflow = Path(sys.executable).with_name("mlflow")
    store = f"sqlite:///{(out / 'mlflow.db').resolve()}"
    console.print(
        f"Student against control: {gain:+.1f} points of top-1: {verdict}.\n"
        f"Total time: {sum(entry.seconds for entry in done):.0f} s. Everything is in {out}\n"
        f"Report:   xdg-open {shlex.quote(str(out / 'report.html'))}\n"
        f"MLflow:   {shlex.join([str(mlflow), 'ui', '--backend-store-uri', store])}"
    )


def _result_table(rows: dict[str, dict[str, Any]], num_images: int) -> Table:
    table = Table(title=f"{num_images:,} test images, each exactly once", title_justify="left")
    table.add_column("model")
    for heading in ("top-1 %", "top-5 %", "ECE", "parameters", "MFLOPs", "images/s"):
        table.add_column(heading, justify="right")
    for name, row in rows.items():
        table.add_row(
            name,
            f"{row['top1']:.1f}",
            f"{row['top5']:.1f}",
            f"{row['ece']:.3f}",
            f"{row['parameters']:,}",
            f"{row['flops'] / 1e6:.1f}",
            f"{row['images_per_s']:,.0f}",
        )
    return table
