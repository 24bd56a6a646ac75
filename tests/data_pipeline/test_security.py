"""A shard is data, never code: nothing in it, in its index or in its address is run, unpickled or replaced."""

from __future__ import annotations

import ast
import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from configs.data import AugmentConfig, DataConfig
from data_pipeline.errors import DataError
from data_pipeline.index import open_index
from data_pipeline.reader import SampleReader
from data_pipeline.reindex import index_shards
from data_pipeline.shard_names import find_names
from tests.support.shards import draw_image, encode, make_shards, write_tar

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "data_pipeline").rglob("*.py"))
FORBIDDEN = {
    "pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve",
    "eval", "exec", "compile", "__import__", "torch.load", "torch.hub", "torch.jit",
    "os.system", "os.popen", "os.path.expandvars", "os.path.expanduser",
    "yaml.load", "yaml.unsafe_load", "yaml.full_load",
    "WebDataset", "webdataset.WebDataset", "webdataset.autodecode", "webdataset.gopen",
    "tarfile", "shutil.unpack_archive",
}  # fmt: skip
"""Names and modules by which data could become code, or an address something else."""


def uses(file: str) -> Iterator[tuple[int, str]]:
    """Every dotted name a file mentions or imports, with its line."""
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, (ast.Name, ast.Attribute)):
            yield node.lineno, ast.unparse(node)


@pytest.mark.parametrize("file", FILES)
def test_nothing_that_turns_data_into_code_is_used(file: str) -> None:
    found = [
        (line, name)
        for line, name in uses(file)
        if any(name == bad or name.startswith(f"{bad}.") for bad in FORBIDDEN)
    ]
    assert not found, f"{file}: {found}"


@pytest.mark.parametrize("file", FILES)
def test_arrays_are_read_without_pickle_and_programs_run_without_shell(file: str) -> None:
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if not isinstance(node, ast.Call):
            continue
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        assert keywords.get("shell", "False") == "False", f"{file}:{node.lineno}"
        assert keywords.get("allow_pickle", "False") == "False", f"{file}:{node.lineno}"
        if ast.unparse(node.func) in ("np.load", "numpy.load"):
            assert "allow_pickle" in keywords, f"{file}:{node.lineno}: say allow_pickle=False"


class Bomb:
    """Unpickled, it writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.target,)


def test_members_that_would_run_when_unpickled_are_only_counted(tmp_path: Path) -> None:
    bomb = pickle.dumps(Bomb(tmp_path / "ran"))
    members = [("a.png", encode(draw_image(0))), ("a.cls", b"0")]
    members += [(f"a.{suffix}", bomb) for suffix in ("pth", "pyd", "pickle", "pt", "npy", "npz", "ten", "mp")]
    write_tar(tmp_path / "shards" / "t.tar", members)
    index = index_shards(str(tmp_path / "shards"))
    reader = SampleReader(
        index, DataConfig(train="memory", image_size=16, channels=1, mean=(0.5,), std=(0.5,))
    )
    pixels, ids = np.zeros((1, 16, 16, 1), np.uint8), np.array([0])
    assert reader.read_varied(ids, ids, pixels, augment=AugmentConfig(), seed=0, epoch=0) == {}
    assert pixels.any()
    assert not (tmp_path / "ran").exists()
    pickle.loads(bomb)
    assert (tmp_path / "ran").exists()


def test_an_index_that_would_run_when_unpickled_is_refused(tmp_path: Path) -> None:
    index = make_shards(tmp_path / "shards", [1])
    rows = np.array([Bomb(tmp_path / "ran")], dtype=object)
    np.save(tmp_path / "shards" / "test-000000.tar.index.npy", rows, allow_pickle=True)
    with pytest.raises(DataError, match="cannot be read"):
        open_index(str(index.folder)).rows(0)
    assert not (tmp_path / "ran").exists()


LOCATIONS = (
    "pipe:touch {ran}",
    "pipe:touch {ran}; cat a.tar",
    "simplecache::pipe:touch {ran}",
    "zip://a.tar::file://b.zip",
)


@pytest.mark.parametrize("location", LOCATIONS)
def test_commands_and_chains_are_no_addresses(location: str, tmp_path: Path) -> None:
    index = make_shards(tmp_path / "shards", [1])
    info = json.loads((tmp_path / "shards" / "_info.json").read_text())
    info["mirada"]["base"] = location.format(ran=tmp_path / "ran")
    (tmp_path / "shards" / "_info.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match="is a file or URL, never a command"):
        index_shards(location.format(ran=tmp_path / "ran"), tmp_path / "index")
    with pytest.raises(DataError, match="is a file or URL, never a command"):
        open_index(str(index.folder))
    assert not (tmp_path / "ran").exists()


def test_variables_in_an_address_stay_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "value")
    for address in ("/data/$SECRET", "~/data", "https://host/%SECRET%"):
        assert find_names(f"{address}/%SECRET%-~.tar").urls == [f"{address}/%SECRET%-~.tar"]
    with pytest.raises(DataError, match="environment variables are not put into URLs"):
        find_names("https://host/$SECRET.tar")
    with pytest.raises(DataError, match=r"'\{SECRET\}' is neither a range .* nor a list"):
        find_names("/data/${SECRET}.tar")


def test_an_index_names_no_file_outside_of_its_folder(tmp_path: Path) -> None:
    make_shards(tmp_path / "shards", [1])
    info = json.loads((tmp_path / "shards" / "_info.json").read_text())
    for name in ("../other.tar", "/etc/passwd", "a/b.tar", ""):
        info["splits"]["train"]["filenames"] = [name]
        (tmp_path / "shards" / "_info.json").write_text(json.dumps(info))
        with pytest.raises(DataError, match="is not a plain file name"):
            open_index(str(tmp_path / "shards"))


def test_rows_that_lie_about_sizes_cost_no_memory_and_no_worker(tmp_path: Path) -> None:
    index = make_shards(tmp_path / "shards", [4])
    file = tmp_path / "shards" / "test-000000.tar.index.npy"
    rows = np.load(file)
    rows["size"][0], rows["offset"][1], rows["offset"][2], rows["offset"][3] = 2**32 - 1, 2**64 - 1, 7, 2**40
    np.save(file, rows)
    data = DataConfig(train="memory", image_size=16, channels=1, mean=(0.5,), std=(0.5,))
    reader, ids = SampleReader(open_index(str(index.folder)), data), np.arange(4)
    bad = reader.read_whole(ids, ids, np.zeros((4, 16, 16, 1), np.uint8))
    assert [bad[slot].reason for slot in range(4)] == ["too large", "too large", "not an image", "truncated"]
