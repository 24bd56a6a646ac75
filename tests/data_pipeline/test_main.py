from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.images import make_image_folder
from tests.support.nginx import wait_until
from tests.support.shards import draw_image, encode, make_shards, write_tar
from tests.support.stalling_disk import StallingDisk

ROOT = Path(__file__).resolve().parents[2]


def mirada_data(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "data_pipeline", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_help_lists_the_commands_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from data_pipeline.__main__ import app\n"
        "try: app(['--help'], prog_name='mirada data')\n"
        "except SystemExit: print([name for name in ('torch', 'cv2', 'numpy', 'webdataset') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "Usage: mirada data" in done.stdout
    assert all(name in done.stdout for name in ("build", "index", "verify", "inspect"))
    assert done.stdout.strip().endswith("[]")


def test_build_verify_and_inspect_work_from_the_command_line(tmp_path: Path) -> None:
    source = make_image_folder(tmp_path / "source")
    built = mirada_data("build", source, tmp_path / "out", "--shard-size", 5, "--name", "val", "--workers", 1)
    assert (built.returncode, built.stdout) == (
        0,
        f"{tmp_path}/out: 12 samples, 3 classes, 3 shards (image folder)\n",
    )
    assert "packing out: 12 of 12 samples" in built.stderr
    verified = mirada_data("verify", tmp_path / "out", "--deep")
    assert (verified.returncode, "12 samples, 3 shards: no faults" in verified.stdout) == (0, True)
    sheet = tmp_path / "sheet.png"
    inspected = mirada_data("inspect", tmp_path / "out", "--json", "--sheet", sheet)
    assert json.loads(inspected.stdout)["classes"] == {"cat": 4, "dog": 4, "eel": 4}
    assert sheet.read_bytes().startswith(b"\x89PNG")


def test_faults_are_named_and_end_with_1(tmp_path: Path) -> None:
    make_shards(tmp_path, [4], bad={2: b"broken"})
    done = mirada_data("verify", tmp_path)
    assert done.returncode == 1
    assert (
        "test-000000.tar: key '000002': 'png' file is no image (6 bytes); build the shard again"
        in done.stdout
    )
    assert done.stdout.splitlines()[-1].startswith(f"{tmp_path}: 4 samples, 1 shard: 1 fault (")


def test_an_index_can_lie_elsewhere(tmp_path: Path) -> None:
    members = [("x.png", encode(draw_image(0))), ("x.cls", b"1"), ("x.pth", b"not opened")]
    write_tar(tmp_path / "theirs" / "a.tar", members)
    (tmp_path / "names.txt").write_text("sun\nmoon\n")
    done = mirada_data(
        "index", tmp_path / "theirs", "--out", tmp_path / "mine", "--class-names", tmp_path / "names.txt"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:] == ["ignored, for they belong to no sample: 1 pth"]
    assert sorted(path.name for path in (tmp_path / "theirs").iterdir()) == ["a.tar"]
    inspected = mirada_data("inspect", tmp_path / "mine")
    assert "moon" in inspected.stdout and "28 x 28 (1)" in inspected.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("build", "{folder}", "{folder}/../out"), "no images below it"),
        (("build", "{folder}/none", "{folder}/out"), "no such file or folder"),
        (
            ("build", "{folder}", "{folder}/out", "--shard-bytes", "0"),
            "--shard-bytes '0': a number of bytes such as 300MB",
        ),
        (("build", "{folder}", "{folder}/out", "--name", "a/b"), "--name 'a/b': letters, digits"),
        (("verify", "{folder}"), "make it with: mirada data index"),
        (("inspect", "{folder}"), "make it with: mirada data index"),
        (("index", "{folder}"), "no shards in"),
        (("inspect", "{folder}", "--jsn"), "No such option: --jsn"),
    ],
)
def test_mistakes_are_messages_and_end_with_2(
    tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    done = mirada_data(*(argument.format(folder=folder) for argument in arguments))
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(folder.iterdir()) == []


@pytest.mark.slow
def test_ctrl_c_ends_without_a_traceback_and_the_next_run_goes_on(tmp_path: Path) -> None:
    source = make_image_folder(tmp_path / "source", per_class=40)
    disk = StallingDisk(tmp_path / "disk", num_syncs=36)  # six for each shard
    command = [
        sys.executable,
        "-m",
        "data_pipeline",
        "build",
        str(source),
        str(tmp_path / "out"),
        "--shard-size",
        "3",
    ]
    command += ["--workers", "2"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=disk.environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_until(lambda: len(list((tmp_path / "out").glob("*.tar"))) >= 5)
    os.killpg(process.pid, signal.SIGINT)
    disk.release()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert not list((tmp_path / "out").glob(".*.partial"))
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert "120 samples, 3 classes, 40 shards" in finished.stdout
