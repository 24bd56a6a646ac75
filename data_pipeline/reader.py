"""SampleReader: sample ids -> pixels in the slots of a batch, and the names of what cannot be decoded."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray

from configs.data import AugmentConfig, DataConfig
from data_pipeline.bad import BadSample
from data_pipeline.index import ShardIndex
from data_pipeline.pixels.augment import Variations, as_evaluated, draw_variations, uniforms, varied_as
from data_pipeline.pixels.crop import decode_crop
from data_pipeline.pixels.decode import DecodeError, Header, Pixels, read_header
from data_pipeline.pixels.exact import decode_crop_exactly
from data_pipeline.pixels.photometric import Photometric
from data_pipeline.scan import MAX_IMAGE_BYTES, member_before
from data_pipeline.storage.cache import ShardCache
from data_pipeline.storage.files import ShardFiles

Ints = NDArray[np.int64]
_TAR_HEADER = 512
_MAX_OFFSET = 1 << 62
_MOST_HELD = 64 << 20
"""Bytes of encoded images that are held while the crops of a batch are drawn: what is beyond is read twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Encoded:
    slot: int
    sample_id: int
    data: bytes | None
    """None where it is read again when its turn comes, so that a batch of large files does not lie in memory."""
    header: Header


class SampleReader:
    """Reads images of an index as a run's data section wants them; one per process."""

    def __init__(self, index: ShardIndex, data: DataConfig, files: ShardFiles | None = None) -> None:
        self._index = index
        decode = decode_crop_exactly if data.decode == "exact" else decode_crop
        self._decode_crop = partial(decode, bicubic=data.interpolation == "bicubic")
        self._eval_crop = data.eval_crop
        self._mean_colour = np.rint(np.array(data.mean) * 255).clip(0, 255).astype(np.uint8)
        self._files = files or open_files(index, data)
        self._scratch = np.empty((0, 0, data.channels), np.uint8)

    def read_varied(
        self,
        slots: Ints,
        sample_ids: Ints,
        images: Pixels,
        *,
        augment: AugmentConfig,
        seed: int,
        epoch: int | Ints,
        copy: int | Ints = 0,
    ) -> dict[int, BadSample]:
        """Puts each sample, varied by (seed, epoch, sample, copy), into its slot of `images`; slot -> fault.

        `images` are uint8 [B, S, S, C]; `epoch` and `copy` are one number, or one for each of `slots`.
        """
        encoded, bad = self._fetch(slots, sample_ids)
        heights, widths = _sizes(encoded)
        read = [place for place, slot in enumerate(slots.tolist()) if slot not in bad]
        epochs, copies = (np.broadcast_to(number, slots.shape)[read] for number in (epoch, copy))
        u = uniforms(seed, varied_as(augment, epochs), sample_ids[read], view=copies)
        variations = draw_variations(augment, images.shape[1], heights, widths, u)
        photometric = Photometric(augment, fill=tuple(self._mean_colour.tolist()))
        return bad | self._render(encoded, variations, images, photometric)

    def read_whole(self, slots: Ints, sample_ids: Ints, images: Pixels) -> dict[int, BadSample]:
        """Puts each sample, as evaluation looks at it, into its slot of `images`; slot -> fault."""
        encoded, bad = self._fetch(slots, sample_ids)
        boxes = as_evaluated(self._eval_crop, images.shape[1], *_sizes(encoded))
        return bad | self._render(encoded, boxes, images, None)

    def labels(self, sample_ids: Ints) -> Ints:
        """The label of each sample; -1 where there is none."""
        shards, rows = self._index.locate(sample_ids)
        pairs = zip(shards.tolist(), rows.tolist(), strict=True)
        return np.array([self._index.rows(shard)["label"][row] for shard, row in pairs], np.int64)

    def _fetch(self, slots: Ints, sample_ids: Ints) -> tuple[list[_Encoded], dict[int, BadSample]]:
        encoded: list[_Encoded] = []
        bad: dict[int, BadSample] = {}
        shards, rows = self._index.locate(sample_ids)
        places = zip(slots.tolist(), sample_ids.tolist(), shards.tolist(), rows.tolist(), strict=True)
        held = 0
        for slot, sample_id, shard, row in places:
            try:
                data = self._content(shard, row)
                header = read_header(data)
            except DecodeError as error:
                bad[slot] = self.describe(sample_id, error.reason)
                continue
            kept = data if held + len(data) <= _MOST_HELD else None
            held += 0 if kept is None else len(kept)
            encoded.append(_Encoded(slot=slot, sample_id=sample_id, data=kept, header=header))
        return encoded, bad

    def _content(self, shard: int, row: int) -> bytes:
        """An encoded image; the index came with the shards, and is not believed more than they are."""
        offset, size, _label, _format = self._index.rows(shard)[row].item()
        if size > MAX_IMAGE_BYTES or offset > _MAX_OFFSET:
            raise DecodeError("too large")
        data = self._files.read(self._index.shards[shard].url, offset, size)
        if len(data) < size:
            raise DecodeError("truncated")
        return data

    def _render(
        self,
        encoded: list[_Encoded],
        variations: Variations,
        images: Pixels,
        photometric: Photometric | None,
    ) -> dict[int, BadSample]:
        bad: dict[int, BadSample] = {}
        boxes, shifts = variations.boxes.tolist(), variations.shifts.tolist()
        flips, erasures = variations.flips.tolist(), variations.erasures.tolist()
        for i, sample in enumerate(encoded):
            out = images[sample.slot]
            try:
                self._draw(sample, boxes[i], shifts[i], out)
            except DecodeError as error:
                bad[sample.slot] = self.describe(sample.sample_id, error.reason)
                continue
            if flips[i]:
                cv2.flip(out, 1, dst=out)
            if photometric is not None:
                photometric.apply(out, variations.photometric[i])
            self._erase(erasures[i], out)
        return bad

    def _draw(self, sample: _Encoded, box: list[int], shift: list[int], out: Pixels) -> None:
        left, top, width, height = box
        moved = shift != [0, 0]
        if moved and self._scratch.shape != out.shape:
            self._scratch = np.empty_like(out)
        square = self._scratch if moved else out
        data = sample.data
        if data is None:
            shards, rows = self._index.locate(np.array([sample.sample_id], np.int64))
            data = self._content(int(shards[0]), int(rows[0]))
        self._decode_crop(data, sample.header, (left, top, width, height), square)
        if moved:
            _place_shifted(square, shift, out)

    def _erase(self, box: list[int], out: Pixels) -> None:
        left, top, width, height = box
        if width:
            out[top : top + height, left : left + width] = self._mean_colour

    def describe(self, sample_id: int, reason: str) -> BadSample:
        """A sample that cannot be used, by the names that people know it by."""
        shards, rows = self._index.locate(np.array([sample_id], np.int64))
        shard, row = self._index.shards[int(shards[0])], int(rows[0])
        offset = int(self._index.rows(int(shards[0]))["offset"][row])
        before = min(max(offset - _TAR_HEADER, 0), _MAX_OFFSET)
        key = member_before(self._files.read(shard.url, before, _TAR_HEADER))
        return BadSample(sample_id=sample_id, shard=shard.name, key=key or f"row {row}", reason=reason)


def open_files(index: ShardIndex, data: DataConfig) -> ShardFiles:
    """The shards of an index, for all that one process reads of them: copies it has open count once."""
    return ShardFiles(index.shards, cache=ShardCache(max_bytes=data.cache_size))


def _sizes(encoded: list[_Encoded]) -> tuple[Ints, Ints]:
    sizes = np.array([(sample.header.height, sample.header.width) for sample in encoded], np.int64).reshape(
        -1, 2
    )
    return sizes[:, 0], sizes[:, 1]


def _place_shifted(square: Pixels, shift: list[int], out: Pixels) -> None:
    size, (right, down) = len(out), shift
    out[...] = 0
    out[max(down, 0) : size + min(down, 0), max(right, 0) : size + min(right, 0)] = square[
        max(-down, 0) : size - max(down, 0), max(-right, 0) : size - max(right, 0)
    ]
