"""The loaders that are compared, and what each needs; imports none of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One loader."""

    name: str
    """Its file in this folder."""
    title: str
    distribution: str | None
    """What is installed; its version is reported."""
    wanted: float = 1.0
    """How many times its rate ours should reach."""
    converted: bool = False
    """Whether it reads a form of the corpus that must be made first."""
    marked: bool = False
    """Whether it reads tars that `mirada data build --restart-markers` has made."""

    def place(self, corpora: Path, corpus: str) -> Path:
        """Where it finds a corpus."""
        if self.converted:
            return corpora / "converted" / self.name
        return corpora / (f"{corpus}_marked" if self.marked else corpus)


OURS, MARKED, PLAIN, WALL = "mirada", "mirada_marked", "plain_webdataset", "entropy_wall"
PEERS = {
    peer.name: peer
    for peer in (
        Peer(name=PLAIN, title="webdataset, PIL + torchvision", distribution="webdataset", wanted=4.0),
        Peer(name="energon", title="Megatron-Energon", distribution="megatron-energon", converted=True),
        Peer(
            name="mosaic_streaming",
            title="MosaicML Streaming",
            distribution="mosaicml-streaming",
            converted=True,
        ),
        Peer(name="timm_reader", title="timm's wds reader", distribution="timm"),
        Peer(name="spdl_threads", title="SPDL", distribution="spdl"),
        Peer(name="litdata_stream", title="LitData", distribution="litdata", converted=True),
        Peer(name="torchvision_decode", title="webdataset, torchvision decode", distribution="torchvision"),
        Peer(name="dali", title="NVIDIA DALI, CPU", distribution="nvidia-dali-cuda120", wanted=1.7),
        Peer(name="ffcv_beton", title="FFCV", distribution="ffcv", wanted=1.5, converted=True),
        Peer(name=OURS, title="Mirada", distribution=None),
        Peer(name=MARKED, title="Mirada, restart markers", distribution=None, marked=True),
        Peer(name=WALL, title="entropy decoding alone", distribution=None),
    )
}
