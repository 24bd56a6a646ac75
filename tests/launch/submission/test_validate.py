"""What is wrong with a submission is known before it is queued, all of it at once, and soon."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from configs.base import ConfigError
from configs.estimates import Estimate, keep_estimate
from launch.submission.request import Request, read_request
from launch.submission.validate import check, find_mistakes

ROOT = Path(__file__).resolve().parents[3]
PRETRAIN = "configs/smoke/pretrain_vit.yaml"
STUDENT = "configs/smoke/finetune_student.yaml"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory, an empty cache, and a PATH with commands of SLURM that know of no job."""
    (tmp_path / "bin").mkdir()
    for name in ("sbatch", "srun", "scontrol", "squeue"):
        (tmp_path / "bin" / name).write_text("#!/bin/sh\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "c.yaml").write_text("kind: slurm\ntime: 60 min\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ask(*words: str, program: str = "pretrain", recipe: str = PRETRAIN) -> Request:
    return read_request(program, recipe, words, cluster="c.yaml", out=Path("run"))


def mistakes(*words: str, **options: str) -> list[str]:
    return list(find_mistakes(ask(*words, **options)))


def test_nothing_is_wrong_with_the_smoke_recipe() -> None:
    assert mistakes() == []
    assert check(ask("nodes={min: 2, max: 8}")).node_counts == (2, 4, 8)


def test_everything_that_is_wrong_is_told_at_once(place: Path) -> None:
    (place / "run").mkdir()
    (place / "run").chmod(0o777)
    with pytest.raises(ConfigError) as refused:
        check(ask("data.train=/nowhere", "nodes=3", f"shared=[{place}/share]"))
    text = str(refused.value)
    assert re.match(r"\d mistakes, nothing was submitted\n", text)
    for words in (
        "data.train: no index in '/nowhere'; make it with: mirada data index /nowhere",
        "nodes: 3 with 1 ranks each are 3 ranks, which cannot share train.global_batch of 64 equally",
        f"shared: there is no folder '{place}/share' here",
        f"--out: '{place}/run' is not below '{place}/share'",
        "--out: others may write in",
    ):
        assert words in text


def test_too_few_samples_for_a_batch_are_a_mistake() -> None:
    (found,) = mistakes("train.global_batch=8192")
    assert "has 6,000 samples, and train.global_batch takes 8,192 a step" in found


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["train.duration=10 steps"], "schedule.warmup: '10 steps' is as long as the whole run, 10 steps"),
        (["train.duration=1 images"], "train.duration: '1 images' is less than one step"),
        (["train.duration=11 steps"], None),
        (["train.duration=1 steps", "schedule.warmup=0 steps"], None),
        (["train.duration=1 epochs", "schedule.warmup=1 epochs"], "the whole run, 93 steps ('1 epochs')"),
    ],
)
def test_a_run_that_is_all_warm_up_or_nothing_is_a_mistake(words: list[str], found: str | None) -> None:
    lines = mistakes(*words)
    assert (len(lines) == 1 and found in lines[0]) if found else lines == []


@pytest.mark.parametrize("text", ["{", '{"splits": {}}', '{"mirada": {}, "splits": 3}'])
def test_an_index_that_cannot_be_read_is_a_mistake(place: Path, text: str) -> None:
    (place / "data").mkdir()
    (place / "data" / "_info.json").write_text(text)
    (found,) = mistakes("data.train=data", "data.val=null")
    assert found.startswith("data.train: the index 'data/_info.json' cannot be read")


def test_images_that_are_mixed_need_pairs_on_each_rank() -> None:
    words = ["nodes=64", "data.augment.mixup=0.2"]
    (found,) = mistakes(*words)
    assert "equally in pairs (mixup, cutmix): choose a multiple of 128" in found
    assert mistakes("nodes=64") == []


def test_a_teacher_that_is_not_there_is_a_mistake_unless_it_will_be(place: Path) -> None:
    words = [f"teacher.checkpoint={place}/teacher"]
    (found,) = mistakes(*words, program="finetune", recipe=STUDENT)
    assert found.startswith(f"teacher: '{place}/teacher' is no release and no run folder with one")
    request = ask(*words, program="finetune", recipe=STUDENT)
    assert check(request, promised=[place / "teacher"])
    (place / "teacher" / "release").mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (place / "teacher" / "release" / name).touch()
    assert mistakes(*words, program="finetune", recipe=STUDENT) == []


def test_answers_that_are_not_there_or_not_finished_are_a_mistake_unless_they_will_be(place: Path) -> None:
    words = ["teacher.checkpoint=vit_tiny_patch16_224", f"teacher.cache={place}/answers"]
    (found,) = mistakes(*words, program="finetune", recipe=STUDENT)
    assert (
        found == f"teacher.cache: '{place}/answers' holds no answers of a teacher; mirada teach writes them"
    )
    assert check(ask(*words, program="finetune", recipe=STUDENT), promised=[place / "answers"])
    (place / "answers").mkdir()
    (place / "answers" / "answers.json").write_text('{"taught": null}')
    (found,) = mistakes(*words, program="finetune", recipe=STUDENT)
    assert "are not all there yet; mirada teach goes on with them" in found
    (place / "answers" / "answers.json").write_text('{"taught": {"passes": [1], "copies": 1}}')
    assert mistakes(*words, program="finetune", recipe=STUDENT) == []


def test_a_file_with_weights_to_start_from_has_to_be_there(place: Path) -> None:
    recipe = "configs/finetune/full.yaml"
    (found,) = mistakes("checkpoint=cnn.pth", program="finetune", recipe=recipe)
    assert found == "start: no file 'cnn.pth'"
    (place / "cnn.pth").touch()
    assert mistakes("checkpoint=cnn.pth", program="finetune", recipe=recipe) == []
    assert mistakes("checkpoint=resnet50.a1_in1k", program="finetune", recipe=recipe) == []


def test_paths_below_a_shared_folder_are_right_and_others_are_named(place: Path) -> None:
    (place / "share").mkdir()
    prefix = sys.prefix
    assert mistakes(f"shared=[{place},{prefix}]") == []
    found = mistakes(f"shared=[{place}/share,{prefix}]")
    assert [line.split(":")[0] for line in found] == ["--out", "the working directory"]
    assert all(
        "the folders that all nodes share (key 'shared' of the cluster file)" in line for line in found
    )


def test_a_link_out_of_the_shared_folder_is_seen_through(
    place: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("local-disk")
    (place / "run").symlink_to(elsewhere)
    (found,) = mistakes(f"shared=[{place},{sys.prefix}]")
    assert found.startswith("--out: ")


def test_the_time_limit_is_held_against_the_plan() -> None:
    request = ask()
    keep_estimate(request.loaded.digest, Estimate(hours=5.5, num_ranks=1))
    assert check(request).notes == ("mirada plan expects 5.5 h: with a limit of 60 min it starts 6 times",)
    (found,) = mistakes("requeue.budget=3")
    assert (
        "mirada plan expects 5.5 h, and 4 starts of 60 min are 4.0 h: raise 'time' or 'requeue.budget'"
        in found
    )
    assert mistakes("requeue.budget=3", "nodes=2") == []
    assert check(ask("optim.lr=0.5")).notes == ()


def test_a_folder_whose_job_is_still_there_is_not_submitted_again(place: Path) -> None:
    from launch.submission.prepare import prepare
    from launch.submission.record import with_jobs, write_submission

    write_submission(with_jobs(prepare(check(ask())), ("17",)))
    assert mistakes() == []
    (place / "bin" / "squeue").write_text('#!/bin/sh\necho "$@" >> asked\necho "17 is RUNNING"\n')
    (found,) = mistakes()
    assert f"--out: job 17 is RUNNING in '{place}/run' already: wait for it, stop it (mirada cancel" in found
    assert "-j 17" in (place / "asked").read_text()


def test_a_folder_of_another_run_is_a_mistake_unless_it_is_moved_aside(place: Path) -> None:
    (place / "run").mkdir(mode=0o755)
    (place / "run" / "config.yaml").write_text(ask("optim.lr=0.5", "train.log_every=3").loaded.yaml())
    (found,) = mistakes("optim.lr=0.25")
    assert (
        f"--out: run folder '{place}/run' belongs to another config: optim.lr is 0.5 there and 0.25 here"
        in found
    )
    assert list(find_mistakes(replace(ask("optim.lr=0.25"), fresh=True))) == []
    assert mistakes("optim.lr=0.5", "train.log_every=7") == []


def test_without_slurm_on_the_path_it_says_so(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(place / "nothing"))
    (found,) = mistakes()
    assert found.startswith("no sbatch and no srun and no scontrol and no squeue on the PATH")
    assert "a cluster file of kind local" in found


def test_it_takes_less_than_two_seconds_and_no_torch(place: Path) -> None:
    """The best of three processor times: other work on the machine is not our doing."""
    (place / "torch.py").write_text("raise SystemExit('torch was imported')")
    (place / "numpy.py").write_text("raise SystemExit('numpy was imported')")
    command = ["launch", "pretrain", str(ROOT / PRETRAIN), "data.train=/nowhere", "--cluster", "c.yaml"]
    spent = []
    for _ in range(3):
        before = os.times()
        result = subprocess.run(
            [sys.executable, "-c", "from launch.cli import main; main()", *command],
            env={**os.environ, "PYTHONPATH": f"{place}{os.pathsep}{ROOT}"},
            capture_output=True,
            text=True,
            check=False,
        )
        after = os.times()
        assert result.returncode == 2, result.stderr
        assert "data.train: no index in '/nowhere'" in result.stderr and "Traceback" not in result.stderr
        spent.append(
            after.children_user - before.children_user + after.children_system - before.children_system
        )
    assert min(spent) < 2.0


def test_fresh_moves_the_old_run_aside_and_not_one_that_is_training(place: Path) -> None:
    from launch.submission.prepare import prepare

    (place / "run").mkdir(mode=0o755)
    (place / "run" / "config.yaml").write_text("{}")
    request = replace(ask(), fresh=True)
    prepare(check(request))
    assert (place / "run.1" / "config.yaml").exists() and not (place / "run" / "config.yaml").exists()
    hold = "import fcntl, sys; f = open('run/.lock', 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(1, flush=True); input()"
    holder = subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "1\n"
        with pytest.raises(ConfigError, match="a process is training in"):
            prepare(check(request))
    finally:
        holder.kill()
        holder.communicate()
    prepare(check(request))
    assert (place / "run.2").exists()


def test_the_record_says_what_will_run(place: Path) -> None:
    from launch.submission.prepare import prepare
    from launch.submission.record import read_submission

    start = time.time()
    submission = prepare(check(ask("nodes=2", "optim.lr=0.25")))
    assert read_submission(place / "run") == submission
    module, recipe, *rest = submission.command
    assert (module, rest) == ("pretrain", ["--out", str(place / "run")])
    assert Path(recipe).parent == submission.snapshot and "lr: 0.25" in Path(recipe).read_text()
    assert submission.overrides == ("optim.lr=0.25",) and submission.cluster.nodes == 2
    assert submission.workdir == place and submission.created >= start
    assert json.loads((place / "run" / "launch" / "submission.json").read_text())["cluster"]["nodes"] == 2
