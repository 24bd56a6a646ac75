from __future__ import annotations

import gzip
import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.errors import DataError
from data_pipeline.packing.corpus import Choice, read_corpus, read_names
from data_pipeline.packing.idx import encode_png
from tests.support.images import encoded_image, make_image_folder
from tests.support.shards import draw_image, encode, write_tar


def write_idx(folder: Path, pixels: np.ndarray, labels: list[int], *, compress: bool = True) -> Path:
    """A pair of idx files as MNIST has them."""
    folder.mkdir(exist_ok=True)
    images = struct.pack(">IIII", 0x803, *pixels.shape) + pixels.tobytes()
    named = {
        "x-images-idx3-ubyte": images,
        "x-labels-idx1-ubyte": struct.pack(">II", 0x801, len(labels)) + bytes(labels),
    }
    for name, content in named.items():
        (folder / (name + ".gz" * compress)).write_bytes(gzip.compress(content) if compress else content)
    return folder / ("x-images-idx3-ubyte" + ".gz" * compress)


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 5, 7), dtype=np.uint8)


def test_a_folder_per_class_is_labelled_in_sorted_order(tmp_path: Path) -> None:
    corpus = read_corpus(make_image_folder(tmp_path / "in", classes=("zoo", "ant")), Choice(shuffle=False))
    assert corpus.classes == ("ant", "zoo")
    assert [record.name for record in corpus.records][:2] == ["ant/000.jpg", "ant/001.png"]
    assert [record.label for record in corpus.records] == [0] * 4 + [1] * 4


def test_image_folders_are_mixed_by_default_and_the_same_each_time(tmp_path: Path) -> None:
    source = make_image_folder(tmp_path / "in", per_class=20)
    names = [
        [record.name for record in read_corpus(source, choice).records]
        for choice in (Choice(), Choice(), Choice(seed=1))
    ]
    assert names[0] == names[1]
    assert sorted(names[0]) == sorted(names[2]) and names[0] != names[2]
    assert len({name.split("/")[0] for name in names[0][:10]}) == 3


def test_other_files_are_counted_and_hidden_ones_are_not(tmp_path: Path) -> None:
    source = make_image_folder(tmp_path / "in")
    for name in ("notes.txt", "x.gif", "._000.jpg", ".DS_Store"):
        (source / "cat" / name).write_bytes(b"x")
    corpus = read_corpus(source, Choice())
    assert (len(corpus.records), corpus.num_ignored) == (12, 2)


def test_images_in_deeper_folders_belong_to_the_first_one(tmp_path: Path) -> None:
    source = make_image_folder(tmp_path / "in", classes=("cat",), per_class=1)
    (source / "cat" / "2024" / "may").mkdir(parents=True)
    (source / "cat" / "2024" / "may" / "x.JPEG").write_bytes(encoded_image(5, "JPEG"))
    (source / "cat" / "loop").symlink_to(source)
    corpus = read_corpus(source, Choice(shuffle=False))
    assert [record.name for record in corpus.records] == ["cat/000.jpg", "cat/2024/may/x.JPEG"]


def test_source_without_images_or_classes_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such file or folder"):
        read_corpus(tmp_path / "nowhere", Choice())
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "readme.txt").write_text("x")
    with pytest.raises(
        DataError, match=r"no images below it \(1 other files\): \.jpg, \.jpeg, \.png, \.webp"
    ):
        read_corpus(tmp_path / "in", Choice())
    (tmp_path / "in" / "a.png").write_bytes(encoded_image(0))
    with pytest.raises(DataError, match=r"zero classes.*--unlabelled"):
        read_corpus(tmp_path / "in", Choice())
    assert [record.label for record in read_corpus(tmp_path / "in", Choice(unlabelled=True)).records] == [-1]
    (tmp_path / "in" / "cat").mkdir()
    with pytest.raises(DataError, match=r"1 images beside the class folders \(the first: 'a.png'\)"):
        read_corpus(tmp_path / "in", Choice())


def test_empty_class_folders_and_splits_are_no_classes(tmp_path: Path) -> None:
    source = make_image_folder(tmp_path / "in")
    (source / "fox").mkdir()
    with pytest.raises(DataError, match=r"1 class folder\(s\) without an image: 'fox'"):
        read_corpus(source, Choice())
    with pytest.raises(DataError, match=r"\['train', 'val'\] look like splits, not classes"):
        read_corpus(make_image_folder(tmp_path / "two", classes=("train", "val")), Choice())


def test_classes_are_chosen_and_numbered_by_the_list(tmp_path: Path) -> None:
    source = make_image_folder(tmp_path / "in")
    corpus = read_corpus(source, Choice(class_names=("eel", "cat"), shuffle=False))
    assert corpus.classes == ("eel", "cat")
    assert [(record.name[:3], record.label) for record in corpus.records] == [("cat", 1)] * 4 + [
        ("eel", 0)
    ] * 4
    with pytest.raises(DataError, match=r"no class of the source: 'ell'; it has cat, dog, eel"):
        read_corpus(source, Choice(class_names=("ell", "cat")))


def test_first_of_each_class_keep_the_order_of_the_source(tmp_path: Path, pixels: np.ndarray) -> None:
    source = write_idx(tmp_path, pixels, [1, 1, 0, 1, 0, 0])
    corpus = read_corpus(source, Choice(per_class=2))
    assert [record.name[-3:] for record in corpus.records] == ["[0]", "[1]", "[2]", "[4]"]
    assert [record.name[-3:] for record in read_corpus(source, Choice(per_class=2, limit=3)).records][
        -1
    ] == "[2]"


@pytest.mark.parametrize("compress", [True, False])
def test_idx_pixels_survive_as_png(tmp_path: Path, pixels: np.ndarray, compress: bool) -> None:
    corpus = read_corpus(write_idx(tmp_path, pixels, [3, 0, 1, 1, 2, 0], compress=compress), Choice())
    assert corpus.classes == ("0", "1", "2", "3")
    for record, expected in zip(corpus.records, pixels, strict=True):
        assert record.shape == (5, 7)
        image = Image.open(io.BytesIO(encode_png(record.image.read(), *record.shape)))
        assert (image.mode, image.format) == ("L", "PNG")
        np.testing.assert_array_equal(np.asarray(image), expected)


def test_numbered_labels_can_be_given_names(tmp_path: Path, pixels: np.ndarray) -> None:
    source = write_idx(tmp_path, pixels, [0, 1, 0, 1, 0, 1])
    assert read_corpus(source, Choice(label_names=("sun", "moon"))).classes == ("sun", "moon")
    with pytest.raises(DataError, match="1 names for the labels 0 to 1"):
        read_corpus(source, Choice(label_names=("sun",)))
    with pytest.raises(DataError, match="names already, such as 'cat'"):
        read_corpus(make_image_folder(tmp_path / "in"), Choice(label_names=("a", "b", "c")))


def test_idx_files_that_are_no_pair_or_not_whole_are_named(tmp_path: Path, pixels: np.ndarray) -> None:
    source = write_idx(tmp_path / "a", pixels, [0] * 5)
    with pytest.raises(DataError, match="5 labels for 6 images"):
        read_corpus(source, Choice())
    (tmp_path / "a" / "x-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"expected 'x-labels-idx1-ubyte' or 'x-labels-idx1-ubyte\.gz'"):
        read_corpus(source, Choice())
    plain = write_idx(tmp_path / "b", pixels, [0] * 6, compress=False)
    plain.write_bytes(plain.read_bytes()[:-1])
    with pytest.raises(DataError, match="225 bytes where its header says 226"):
        read_corpus(plain, Choice())
    torn = write_idx(tmp_path / "d", pixels, [0] * 6)
    content = bytearray(torn.read_bytes())
    content[10:14] = b"\xff" * 4  # behind gzip's header, where zlib's codes begin
    torn.write_bytes(content)
    with pytest.raises(DataError, match="not a whole gzip file"):
        read_corpus(torn, Choice())
    half = write_idx(tmp_path / "c", pixels, [0] * 6)
    half.write_bytes(half.read_bytes()[:-20])
    with pytest.raises(DataError, match="not a whole gzip file"):
        read_corpus(half, Choice())


def test_a_compressed_tar_is_unpacked_again_if_its_copy_was_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIRADA_CACHE", str(tmp_path / "cache"))
    images = [encode(draw_image(number)) for number in range(3)]
    members = [(f"{number}.png", image) for number, image in enumerate(images)]
    write_tar(tmp_path / "tars" / "a.tar.gz", members)
    corpus = read_corpus(tmp_path / "tars", Choice(unlabelled=True))
    for copy in (tmp_path / "cache").glob("*.tar"):
        copy.unlink()
    assert [record.image.read() for record in corpus.records] == images


def test_a_list_of_names_has_each_once(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_text("cat\n\n dog \n")
    assert read_names(file, option="--classes") == ("cat", "dog")
    file.write_text("cat\ncat\n")
    with pytest.raises(DataError, match=r"names 'cat' twice; --classes takes"):
        read_names(file, option="--classes")
    file.write_bytes("K\u00e4tzchen\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"not readable as text: .*; save it as UTF-8"):
        read_names(file, option="--classes")
    with pytest.raises(DataError, match="no such file; --classes takes"):
        read_names(tmp_path / "none.txt", option="--classes")


def test_what_cannot_be_packed_is_said_with_what_can(tmp_path: Path) -> None:
    (tmp_path / "data.zip").write_bytes(b"PK")
    with pytest.raises(
        DataError, match=r"data\.zip: not a source that can be packed; give a folder of images"
    ):
        read_corpus(tmp_path / "data.zip", Choice())


@pytest.mark.parametrize(("height", "width"), [(1, 1), (300, 217), (256, 255), (255, 257)])
def test_pngs_of_any_size_hold_their_pixels(height: int, width: int) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (height, width), dtype=np.uint8)
    image = Image.open(io.BytesIO(encode_png(pixels.tobytes(), height, width)))
    np.testing.assert_array_equal(np.asarray(image), pixels)
