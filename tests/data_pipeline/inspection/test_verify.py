from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.inspection.shard_check import Fault
from data_pipeline.inspection.verify import verify
from data_pipeline.reindex import index_shards
from tests.support.photographs import encoded, photographs
from tests.support.shards import draw_image, encode, make_shards, write_tar

Members = list[tuple[str, bytes]]


def good_members(numbers: range = range(6)) -> Members:
    members: Members = []
    for number in numbers:
        members += [
            (f"{number:06d}.cls", b"%d" % (number % 3)),
            (f"{number:06d}.png", encode(draw_image(number))),
        ]
    return members


def faults_of(folder: Path, members: Members, *, deep: bool = False) -> list[Fault]:
    """Of a shard that was changed to `members` after it had been indexed."""
    write_tar(folder / "a-000000.tar", good_members())
    index_shards(str(folder))
    write_tar(folder / "a-000000.tar", members)
    return list(verify(str(folder), deep=deep).faults)


def about(faults: list[Fault], key: str | None) -> str:
    """What is said about that key."""
    return " | ".join(fault.problem for fault in faults if fault.key == key)


def test_good_shards_have_no_faults(tmp_path: Path) -> None:
    make_shards(tmp_path, [5, 3, 7])
    report = verify(str(tmp_path), deep=True)
    assert report.faults == ()
    assert [(shard.name, shard.num_samples) for shard in report.shards] == [
        ("test-000000.tar", 5),
        ("test-000001.tar", 3),
        ("test-000002.tar", 7),
    ]


def test_a_folder_without_index_says_which_command_makes_it(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", good_members())
    with pytest.raises(DataError, match="mirada data index"):
        verify(str(tmp_path))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_one_flipped_bit_anywhere_is_found(tmp_path: Path, place: float, bit: int) -> None:
    write_tar(tmp_path / "a.tar", good_members())
    index_shards(str(tmp_path))
    content = bytearray((tmp_path / "a.tar").read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    (tmp_path / "a.tar").write_bytes(content)
    faults = verify(str(tmp_path)).faults
    assert faults and faults[0].shard == "a.tar"
    assert "checksum is not the one in its index" in faults[0].problem


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kept=st.floats(0, 1, exclude_max=True), gzip=st.booleans())
def test_a_file_cut_anywhere_is_found(tmp_path: Path, kept: float, gzip: bool) -> None:
    file = tmp_path / f"a.tar{'.gz' * gzip}"
    for old in tmp_path.iterdir():
        old.unlink()
    write_tar(file, good_members())
    index_shards(str(tmp_path))
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content))])
    faults = verify(str(tmp_path)).faults
    assert faults
    assert all(fault.shard == file.name and fault.remedy for fault in faults)


def test_a_missing_shard_is_a_fault_and_the_others_are_still_checked(tmp_path: Path) -> None:
    make_shards(tmp_path, [4, 4])
    (tmp_path / "test-000000.tar").unlink()
    report = verify(str(tmp_path))
    assert [fault.shard for fault in report.faults] == ["test-000000.tar"]
    assert "does not exist" in report.faults[0].problem
    assert report.shards[1].faults == ()


def test_members_out_of_order_are_found(tmp_path: Path) -> None:
    members = good_members()
    members[1], members[4] = members[4], members[1]
    faults = faults_of(tmp_path, members)
    assert "its files stand in 2 places" in about(faults, "000000")
    assert "its files stand in 2 places" in about(faults, "000002")


def test_a_doubled_member_and_a_missing_image_are_found(tmp_path: Path) -> None:
    members = good_members()
    doubled = [*members[:4], members[3], *members[4:]]
    assert "two files of suffix 'png'" in about(faults_of(tmp_path, doubled), "000001")
    assert "no image among ['cls']" in about(faults_of(tmp_path, members[:3] + members[4:]), "000001")


def test_wrong_labels_are_found(tmp_path: Path) -> None:
    members = good_members()
    changed = [("000000.cls", b"9"), members[1], ("000001.cls", b"cat"), *members[3:8], *members[9:]]
    faults = faults_of(tmp_path, changed)
    assert "label 9 is outside the class map of 3 classes" in about(faults, "000000")
    assert ".cls holds b'cat', which is no class number" in about(faults, "000001")
    assert "no .cls, while the index has a class map" in about(faults, "000004")


def test_keys_with_dots_are_found(tmp_path: Path) -> None:
    members = [
        ("a.b.png", encode(draw_image(1))),
        ("a.b.cls", b"0"),
        ("a.c.png", encode(draw_image(2))),
        ("a.c.cls", b"1"),
    ]
    problems = about(faults_of(tmp_path, members), "a")
    assert "the file name holds a dot before 'b.png'" in problems
    assert "the file name holds a dot before 'c.cls'" in problems


def test_images_that_are_not_what_their_suffix_says_are_found_without_decoding(tmp_path: Path) -> None:
    members = good_members()
    members[1] = ("000000.png", encode(draw_image(0), "jpg"))
    members[3] = ("000001.png", b"no image at all")
    members[5] = ("000002.png", b"")
    faults = faults_of(tmp_path, members)
    assert "'png' file is 'jpg' by content" in about(faults, "000000")
    assert "'png' file is no image (15 bytes)" in about(faults, "000001")
    assert "'png' file is no image (0 bytes)" in about(faults, "000002")


def test_images_that_do_not_decode_are_found_by_deep(tmp_path: Path) -> None:
    whole = encode(draw_image(0))
    make_shards(tmp_path, [4, 4], bad={5: whole[: len(whole) // 2]})
    assert verify(str(tmp_path)).faults == ()
    (fault,) = verify(str(tmp_path), deep=True).faults
    assert str(fault) == (
        "test-000001.tar: key '000005': image does not decode: truncated; build the shard again"
    )


def test_a_shard_that_was_replaced_does_not_fit_its_index(tmp_path: Path) -> None:
    assert "it has 5 samples, its index says 6" in about(faults_of(tmp_path, good_members(range(5))), None)
    faults = faults_of(tmp_path, [*good_members(range(5)), *good_members(range(6, 7))])
    assert any("its index says" in fault.problem and fault.key == "000006" for fault in faults) or about(
        faults, None
    )


def test_a_key_in_two_shards_is_found(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", good_members(range(4)))
    write_tar(tmp_path / "b.tar", good_members(range(3, 6)))
    index_shards(str(tmp_path))
    (fault,) = verify(str(tmp_path)).faults
    assert (fault.shard, fault.key) == ("a.tar", "000003")
    assert fault.problem == "b.tar has a sample of this key too (its sample 0)"


def test_a_page_of_zeros_within_a_jpeg_is_found(tmp_path: Path) -> None:
    image = bytearray(encoded(photographs((640, 480))[0], "JPEG"))
    write_tar(tmp_path / "a.tar", [("whole.jpg", bytes(image)), ("hole.jpg", holed(image))])
    index_shards(str(tmp_path))
    (fault,) = verify(str(tmp_path), deep=True).faults
    assert fault.key == "hole" and "does not decode" in fault.problem


def holed(image: bytearray) -> bytes:
    middle = len(image) // 2
    return bytes(image[:middle] + bytes(4096) + image[middle + 4096 :])
