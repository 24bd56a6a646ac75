"""Measures what a step costs that learns from a teacher's kept answers: against one without, and with, the teacher.

python -m benchmarks.teacher_cache --out benchmarks/results/teacher_cache.json [--rounds 12] [--minutes 8] [--quick]

One rank; the student and the losses of configs/finetune/demo_student.yaml. The teacher is asked about one pass first,
by `mirada teach`; three trainings then take turns: each a process of its own, frozen while the others run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.result_file import ROOT
from benchmarks.training_rounds import Setting, Variant, measure_and_write, parser_of
from configs.load import load_config
from finetune.cache_manifest import read_manifest
from models.build import build_model
from models.release import save_for_timm
from pretrain.config import PretrainConfig

WANTED = 1.05
RECIPE, TEACHER = "configs/finetune/demo_student.yaml", "configs/pretrain/demo_vit.yaml"
DATA = (
    "data.train=mirada://sample/train",
    "data.val=null",
    "data.label_fraction=1.0",
    "data.augment.passes=1",
)
SETTING = Setting(
    recipe=RECIPE,
    global_batch=128,
    turn=20,
    warmup=4,
    settings=(
        *(*DATA, "train.ema=null", "schedule.warmup=2 steps"),
        *("train.checkpoint_every=100000 steps", "train.evaluate_every=100000 steps"),
    ),
)


def main(arguments: list[str]) -> int:
    """Writes one row per training."""
    given = parser_of(__doc__, rounds=12).parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="mirada-") as folder:
        teacher, cache = Path(folder) / "teacher", Path(folder) / "answers"
        write_teacher(teacher)
        size = write_answers(teacher, cache)
        asked = f"teacher.checkpoint={teacher}"
        variants = (
            Variant(name="without a teacher", loop="distilling", settings=("teacher=null",)),
            Variant(name="kept answers", loop="distilling", settings=(asked, f"teacher.cache={cache}")),
            Variant(name="the teacher itself", loop="distilling", settings=(asked,)),
        )
        return measure_and_write(
            given,
            variants,
            SETTING,
            note=lambda rows, medians: (
                f"nf_seresnet26 of 140,530 parameters, batches of {SETTING.global_batch}, one rank, crops decoded "
                f"in the training process; losses on labels, logits and attention. The teacher is a ViT of 314,698 "
                f"parameters, an answer takes {size} bytes. {medians} Wanted is at most {WANTED} "
                f"of a step without a teacher: "
                f"{1 / rows[1]['ratio']:.3f}; the teacher itself costs {1 / rows[2]['ratio']:.2f}."
            ),
            libraries=("torch", "deepspeed", "timm"),
        )


def write_teacher(folder: Path) -> None:
    """A network like the demo's teacher; how long it takes to answer does not depend on what it has learned."""
    config = load_config(PretrainConfig, ROOT / TEACHER).config
    data = config.data
    shape = {"in_chans": data.channels, "image_size": data.image_size}
    model = build_model(config.model, num_classes=10, **shape)
    folder.mkdir()
    save_for_timm(
        model,
        model.state_dict(),
        folder,
        input_size=(data.channels, data.image_size, data.image_size),
        mean=data.mean,
        std=data.std,
        classes=(),
    )


def write_answers(teacher: Path, cache: Path) -> int:
    """One pass over the embedded sample; returns the bytes of an answer."""
    command = [sys.executable, "-m", "finetune.teach", RECIPE, *DATA, f"teacher.checkpoint={teacher}"]
    subprocess.run([*command, "--out", str(cache)], check=True, cwd=ROOT, env=dict(os.environ))
    manifest = read_manifest(cache)
    assert manifest is not None
    return manifest.answers.record.itemsize


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
