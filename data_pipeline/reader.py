"""SampleReader: sample ids -> pixels in the slots of a batch, and the names of what cannot be decoded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from configs.base import AugmentConfig, DataConfig
from data_pipeline.bad import BadSample
from data_pipeline.index import ShardIndex
from data_pipeline.pixels.augment import Variations, draw_variations, uniforms, whole_image
from data_pipeline.pixels.decode import DecodeError, Header, Pixels, crop_resize, decode, read_header
from data_pipeline.scan import member_before
from data_pipeline.storage.source import ShardFiles, check_size

Ints = NDArray[np.int64]
_TAR_HEADER = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class _Encoded:
    slot: int
    sample_id: int
    data: bytes
    header: Header


class SampleReader:
    """Reads images of an index as a run's data section wants them; one per process."""

    def __init__(self, index: ShardIndex, data: DataConfig) -> None:
        self._index = index
        self._channels = data.channels
        self._size = data.image_size
        self._mean_colour = np.rint(np.array(data.mean) * 255).clip(0, 255).astype(np.uint8)
        self._files = ShardFiles()
        self._urls: dict[int, str] = {}
        self._scratch = np.empty((data.image_size, data.image_size, data.channels), np.uint8)

    def read_varied(
        self, slots: Ints, sample_ids: Ints, images: Pixels, *, augment: AugmentConfig, seed: int, epoch: int
    ) -> dict[int, BadSample]:
        """Puts each sample, varied by (seed, epoch, sample), into its slot of `images` [B, S, S, C]; slot -> fault."""
        encoded, bad = self._fetch(slots, sample_ids)
        heights, widths = _sizes(encoded)
        u = uniforms(seed, epoch, np.array([sample.sample_id for sample in encoded], np.int64))
        return bad | self._render(encoded, draw_variations(augment, self._size, heights, widths, u), images)

    def read_whole(self, slots: Ints, sample_ids: Ints, images: Pixels) -> dict[int, BadSample]:
        """Puts each sample, resized and otherwise as it is, into its slot of `images`; slot -> fault."""
        encoded, bad = self._fetch(slots, sample_ids)
        return bad | self._render(encoded, whole_image(*_sizes(encoded)), images)

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
        for slot, sample_id, shard, row in places:
            offset, size, _label, _format = self._index.rows(shard)[row].item()
            data = self._files.read(self._urls.get(shard) or self._checked_url(shard), offset, size)
            try:
                if len(data) < size:
                    raise DecodeError("truncated")
                encoded.append(_Encoded(slot=slot, sample_id=sample_id, data=data, header=read_header(data)))
            except DecodeError as error:
                bad[slot] = self._describe(sample_id, error.reason)
        return encoded, bad

    def _checked_url(self, number: int) -> str:
        """Where a shard lies; DataError at its first use if it is not there or not whole."""
        shard = self._index.shards[number]
        check_size(shard.url, shard.num_bytes, name=shard.name)
        self._urls[number] = shard.url
        return shard.url

    def _render(
        self, encoded: list[_Encoded], variations: Variations, images: Pixels
    ) -> dict[int, BadSample]:
        bad: dict[int, BadSample] = {}
        boxes, shifts = variations.boxes.tolist(), variations.shifts.tolist()
        flips, erasures = variations.flips.tolist(), variations.erasures.tolist()
        for i, sample in enumerate(encoded):
            try:
                image = decode(sample.data, channels=self._channels, header=sample.header)
            except DecodeError as error:
                bad[sample.slot] = self._describe(sample.sample_id, error.reason)
                continue
            self._draw(image, boxes[i], shifts[i], flips[i], erasures[i], images[sample.slot])
        return bad

    def _draw(
        self, image: Pixels, box: list[int], shift: list[int], flip: bool, erasure: list[int], out: Pixels
    ) -> None:
        left, top, width, height = box
        moved = shift != [0, 0]
        if not moved and not flip:
            crop_resize(image, (left, top, width, height), out)
        else:
            if (height, width) == self._scratch.shape[:2]:
                square = image[top : top + height, left : left + width]
            else:
                crop_resize(image, (left, top, width, height), self._scratch)
                square = self._scratch
            _place_shifted(square, shift, out[:, ::-1] if flip else out)
        if erasure[2]:
            left, top, width, height = erasure
            out[top : top + height, left : left + width] = self._mean_colour

    def _describe(self, sample_id: int, reason: str) -> BadSample:
        shards, rows = self._index.locate(np.array([sample_id], np.int64))
        shard, row = self._index.shards[int(shards[0])], int(rows[0])
        offset = int(self._index.rows(int(shards[0]))["offset"][row])
        key = member_before(self._files.read(shard.url, offset - _TAR_HEADER, _TAR_HEADER))
        return BadSample(sample_id=sample_id, shard=shard.name, key=key or f"row {row}", reason=reason)


def _sizes(encoded: list[_Encoded]) -> tuple[Ints, Ints]:
    sizes = np.array([(sample.header.height, sample.header.width) for sample in encoded], np.int64).reshape(
        -1, 2
    )
    return sizes[:, 0], sizes[:, 1]


def _place_shifted(square: Pixels, shift: list[int], out: Pixels) -> None:
    size, (right, down) = len(out), shift
    if shift != [0, 0]:
        out[...] = 0
    out[max(down, 0) : size + min(down, 0), max(right, 0) : size + min(right, 0)] = square[
        max(-down, 0) : size - max(down, 0), max(-right, 0) : size - max(right, 0)
    ]
