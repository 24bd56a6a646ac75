"""What a worker computes: the number of a step -> the pixels, labels and faults of this rank's batch."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from configs.data import AugmentConfig, DataConfig
from data_pipeline.bad import BadSample
from data_pipeline.captions import CaptionReader
from data_pipeline.errors import DataError
from data_pipeline.index import ShardIndex
from data_pipeline.mix import draw_mix
from data_pipeline.order.image_sizes import ImageSizes
from data_pipeline.order.run_order import RunOrder, Share
from data_pipeline.order.selection import label_is_usable
from data_pipeline.packet import Packet, Packets, Shape, write_texts
from data_pipeline.randomness import hash_words
from data_pipeline.read_ahead import ReadAhead
from data_pipeline.reader import SampleReader, open_files
from data_pipeline.scan import NO_LABEL
from data_pipeline.sidecar import Sidecar

Ints = NDArray[np.int64]
_MAX_SUBSTITUTES = 100


class TrainSteps(Dataset[Packet]):
    """This rank's share of the batch at each flat step (epoch * batches_per_epoch + step)."""

    def __init__(
        self,
        index: ShardIndex,
        data: DataConfig,
        *,
        order: RunOrder,
        sizes: ImageSizes,
        slots: slice,
        seed: int,
        needs_captions: bool = False,
    ) -> None:
        _check_pairs(data, slots)
        files = open_files(index, data)
        self._reader = SampleReader(index, data, files)
        self._views = _views(data, seed)
        self._sizes = sizes
        self._seed = seed
        self._captions = CaptionReader(index, files) if data.captions or needs_captions else None
        self._needs_captions = needs_captions
        self.sidecar: Sidecar | None = None
        """Whose records come with the batches; set before the workers start."""
        self._packets = Packets()
        num_streams = -(-order.num_streams * (slots.stop - slots.start) // order.global_batch)
        self._ahead = ReadAhead(
            index, order, slots=slots, cache=files.cache, num_shards=2 * data.shuffle_window * num_streams
        )
        self._data = data
        self._order = order
        self._slots = slots

    def __getitem__(self, flat_step: int) -> Packet:
        self._ahead.follow(flat_step)
        share = self._order.share(flat_step, self._slots)
        sizes = [self._sizes.at(flat_step), *(view.size for view in self._views[1:])]
        packet = self._packets.new(
            [_shape(len(share.sample_ids), size, self._data) for size in sizes],
            record_size=0 if self.sidecar is None else self.sidecar.record_size,
        )
        pending = np.arange(len(share.sample_ids))
        captions = [b""] * len(pending)
        for attempt in range(1, _MAX_SUBSTITUTES):
            failed = self._read(packet, pending, share) | self._read_captions(captions, pending, share)
            if not failed:
                return self._finished(packet, share, captions)
            packet.bad.extend(failed.values())
            pending = np.array(sorted(failed), np.int64)
            others = self._order.substitutes(flat_step, self._slots, attempt)
            share.substitute(pending, others)
        raise DataError(f"{_MAX_SUBSTITUTES} images in a row cannot be used; the last is {packet.bad[-1]}")

    def _read(self, packet: Packet, slots: Ints, share: Share) -> dict[int, BadSample]:
        """Fills these slots in every view; a sample that fails in one of them has failed."""
        failed: dict[int, BadSample] = {}
        for number, view in enumerate(self._views):
            failed |= self._reader.read_varied(
                slots,
                share.sample_ids[slots],
                packet.pixels(number).numpy(),
                augment=view.augment,
                seed=view.seed,
                epoch=share.passes[slots],
                copy=share.copies[slots],
            )
        return failed

    def _read_captions(self, captions: list[bytes], slots: Ints, share: Share) -> dict[int, BadSample]:
        """Fills these slots with text; where it is needed, a sample without some has failed."""
        if self._captions is None:
            return {}
        ids = share.sample_ids[slots]
        for slot, text in zip(slots.tolist(), self._captions.read(ids), strict=True):
            captions[slot] = text
        if not self._needs_captions:
            return {}
        bare = [slot for slot in slots.tolist() if not captions[slot].strip()]
        return {slot: self._reader.describe(int(share.sample_ids[slot]), "no caption") for slot in bare}

    def _finished(self, packet: Packet, share: Share, captions: list[bytes]) -> Packet:
        usable = label_is_usable(self._data, share.sample_ids)
        packet.sample_ids.numpy()[:] = share.sample_ids
        packet.targets.numpy()[:] = np.where(usable, self._reader.labels(share.sample_ids), NO_LABEL)
        packet.epochs.numpy()[:], packet.copies.numpy()[:] = share.passes, share.copies
        packet.weights.numpy()[:] = 1.0
        if self.sidecar is not None:
            self.sidecar.read(share.sample_ids, share.passes, share.copies, packet.records.numpy())
        if self._data.augment.mixes:
            packet = self._mixed(packet, share)
        return packet if self._captions is None else replace(packet, texts=write_texts(captions))

    def _mixed(self, packet: Packet, share: Share) -> Packet:
        mix = draw_mix(
            self._data.augment,
            size=packet.shapes[0][1],
            seed=self._seed,
            epochs=share.passes,
            sample_ids=share.sample_ids,
            copies=share.copies,
        )
        packet.shares.copy_(mix.shares)
        packet.boxes.copy_(mix.boxes)
        return replace(packet, mixed=True)


class EvalSteps(Dataset[Packet]):
    """One rank's evaluation batches by number, every image whole."""

    def __init__(
        self, index: ShardIndex, data: DataConfig, batches: list[tuple[Ints, NDArray[np.float32]]]
    ) -> None:
        files = open_files(index, data)
        self._reader = SampleReader(index, data, files)
        self._captions = CaptionReader(index, files) if data.captions else None
        self._packets = Packets()
        self._data = data
        self._batches = batches

    def __getitem__(self, batch: int) -> Packet:
        sample_ids, weights = self._batches[batch]
        real = np.flatnonzero(sample_ids >= 0)
        packet = self._packets.new([_shape(len(sample_ids), self._data.image_size, self._data)])
        pixels = packet.pixels(0).numpy()
        failed = self._reader.read_whole(real, sample_ids[real], pixels)
        packet.bad.extend(failed.values())
        pixels[sample_ids < 0] = 0
        pixels[list(failed)] = 0
        packet.sample_ids.numpy()[:] = sample_ids
        packet.targets.numpy()[:] = NO_LABEL
        packet.targets.numpy()[real] = self._reader.labels(sample_ids[real])
        packet.epochs.numpy()[:], packet.copies.numpy()[:] = 0, 0
        packet.weights.numpy()[:] = weights
        packet.weights.numpy()[list(failed)] = 0.0
        if self._captions is None:
            return packet
        return replace(packet, texts=write_texts(self._captions.read(sample_ids)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _View:
    size: int
    augment: AugmentConfig
    seed: int


def _views(data: DataConfig, seed: int) -> list[_View]:
    """The images themselves, and then the further crops, each with random numbers of its own."""
    views = [_View(size=data.image_size, augment=data.augment, seed=seed)]
    for config in data.augment.views:
        augment = data.augment.model_copy(update={"crop": "random_resized", "scale": config.scale})
        for _ in range(config.count):
            own = int(hash_words("view", seed, len(views))[0])
            views.append(_View(size=config.size, augment=augment, seed=own))
    return views


def _check_pairs(data: DataConfig, slots: slice) -> None:
    if data.augment.mixes and (slots.stop - slots.start) % 2:
        raise DataError(
            f"data.augment.mixup and cutmix mix images in pairs, and a rank's share of a batch is "
            f"{slots.stop - slots.start} images; make train.global_batch a multiple of twice the number of ranks"
        )


def _shape(batch: int, size: int, data: DataConfig) -> Shape:
    return batch, size, size, data.channels
