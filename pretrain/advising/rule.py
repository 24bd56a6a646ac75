"""Which attention for which corpus: the rule behind `mirada advise`, a pure function of what was found.

| labelled images | family | attention |
| --- | --- | --- |
| under 100,000 | ResNet | CBAM behind the residual branch of each block: few weights to learn |
| to 1,000,000 | EfficientNet | its own squeeze-and-excitation |
| above | ViT; Swin from 384 pixels, two-stage ViT from 768 | self-attention, which learns from many images alone |
| none | ViT | a masked autoencoder learns without labels |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pretrain.advising.corpus_facts import CorpusFacts

Family = Literal["resnet_cbam", "efficientnet_se", "vit", "swin", "two_stage_vit", "mae_vit"]

LIGHT_BELOW = 100_000
HEAVY_ABOVE = 1_000_000
"""Labelled images between which EfficientNets are proposed."""
WINDOWS_FROM = 384
TWO_STAGE_FROM = 768
"""Pixels of an image's side from which attention is kept within windows, for its cost."""
FEW_PER_CLASS = 50
"""Labelled images of a class, below which a smaller network and more augmentation are proposed."""
SMALL_IMAGE = 96
"""Pixels up to which a CNN must not halve its map five times."""
TOKENS_PER_SIDE = 14
"""What ViT/16 has at 224 pixels, aimed at for smaller images as well."""

_SIZES: Mapping[Family, tuple[str, ...]] = {
    "resnet_cbam": ("resnet18", "resnet34", "resnet50"),
    "efficientnet_se": ("efficientnet_b0", "efficientnet_b1", "efficientnet_b2", "efficientnet_b3"),
    "vit": ("vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224"),
    "swin": ("swin_tiny_patch4_window7_224", "swin_small_patch4_window7_224", "swin_base_patch4_window7_224"),
    "two_stage_vit": ("vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224"),
    "mae_vit": ("vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224"),
}
"""From the smallest to the largest."""
_MORE_IMAGES: Mapping[Family, tuple[int, ...]] = {
    "resnet_cbam": (10_000, 50_000),
    "efficientnet_se": (200_000, 400_000, 700_000),
    "vit": (0, 5_000_000),
    "swin": (2_000_000, 5_000_000),
    "two_stage_vit": (0, 5_000_000),
    "mae_vit": (100_000, 1_000_000),
}
"""Images from which each larger size is proposed."""
_LIGHTER: Mapping[Family, Family] = {
    "two_stage_vit": "efficientnet_se",
    "swin": "efficientnet_se",
    "vit": "efficientnet_se",
    "efficientnet_se": "resnet_cbam",
}
_EPOCHS: Mapping[Family, int] = {
    "resnet_cbam": 100,
    "efficientnet_se": 200,
    "vit": 300,
    "swin": 300,
    "two_stage_vit": 300,
    "mae_vit": 400,
}
_LARGEST_BATCH: Mapping[Family, int] = {
    "resnet_cbam": 256,
    "efficientnet_se": 512,
    "vit": 1024,
    "swin": 1024,
    "two_stage_vit": 1024,
    "mae_vit": 4096,
}
_STEPS_PER_EPOCH = 40
"""At least; a smaller corpus gets smaller batches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A family and its sizes to try, the wished for one first, then smaller ones."""

    family: Family
    image_size: int
    sizes: tuple[str, ...]
    reasons: tuple[str, ...]


def choose(facts: CorpusFacts, *, image_size: int | None = None) -> Choice:
    """The family and the largest size that the corpus can fill; hardware and latency may take a smaller one."""
    side = image_size or _usual_side(facts.shorter_side)
    family, reason = _family(facts, side)
    images = facts.num_labelled or facts.num_images
    number = sum(images >= threshold for threshold in _MORE_IMAGES[family])
    reasons = [reason]
    if side < facts.shorter_side // 2 and image_size is None:
        reasons.append(
            f"images have {facts.shorter_side} pixels on their shorter side and are shown at {side}: "
            "--image-size shows more of them"
        )
    if _is_sparse(facts):
        number = max(0, number - 1)
        reasons.append(
            f"{facts.num_labelled / facts.num_classes:,.0f} labelled images for each of {facts.num_classes:,} classes "
            f"are fewer than {FEW_PER_CLASS}: a smaller size, RandAugment and mixup"
        )
    return Choice(
        family=family,
        image_size=side,
        sizes=_SIZES[family][number::-1],
        reasons=tuple(reasons),
    )


def lighter(choice: Choice) -> Choice | None:
    """All sizes of the next lighter family, for hardware or a latency that no size of this one fits."""
    family = _LIGHTER.get(choice.family)
    if family is None:
        return None
    return Choice(
        family=family, image_size=choice.image_size, sizes=_SIZES[family][::-1], reasons=choice.reasons
    )


def recipe(
    facts: CorpusFacts, choice: Choice, name: str, *, train: str, val: str | None, precision: str
) -> dict[str, Any]:
    """The sections of a recipe for one size, as YAML has them; memory settings are added by who knows the hardware."""
    batch = _batch(facts, choice.family)
    sections: dict[str, Any] = {
        "data": {
            "train": train,
            **({} if val is None else {"val": val}),
            "image_size": choice.image_size,
            "channels": facts.channels,
            "mean": [round(value, 4) for value in facts.mean],
            "std": [round(value, 4) for value in facts.std],
            "augment": _augment(facts, choice),
        },
        "model": {"name": name, **_model(choice)},
        "optim": {"lr": _learning_rate(choice.family, batch), "weight_decay": 0.05},
        "schedule": {"name": "cosine", "warmup": "5 epochs"},
        "train": {
            "duration": f"{_EPOCHS[choice.family]} epochs",
            "global_batch": batch,
            "precision": precision,
        },
        "zero": {"stage": 1},
    }
    if choice.family == "mae_vit":
        sections["objective"] = {"name": "mae"}
        sections["optim"]["betas"] = [0.9, 0.95]
    elif facts.num_classes > 2:
        sections["train"]["label_smoothing"] = 0.1
    if 0 < facts.num_labelled < facts.num_images:
        sections["data"]["unlabelled"] = "drop"
    return sections


def _family(facts: CorpusFacts, side: int) -> tuple[Family, str]:
    if facts.num_labelled == 0:
        return "mae_vit", f"none of {facts.num_images:,} images has a label: a masked autoencoder needs none"
    count = f"{facts.num_labelled:,} labelled images"
    if facts.num_labelled < LIGHT_BELOW:
        return "resnet_cbam", f"{count} are under {LIGHT_BELOW:,}: light gates (CBAM) in a CNN"
    if facts.num_labelled <= HEAVY_ABOVE:
        return (
            "efficientnet_se",
            f"{count} are {LIGHT_BELOW:,} to {HEAVY_ABOVE:,}: EfficientNet with squeeze-and-excitation",
        )
    many = f"{count} are above {HEAVY_ABOVE:,}"
    if side >= TWO_STAGE_FROM:
        return (
            "two_stage_vit",
            f"{many}, at {side} pixels: a ViT whose attention is linear in the tokens (two-stage)",
        )
    if side >= WINDOWS_FROM:
        return "swin", f"{many}, at {side} pixels: attention in windows (Swin)"
    return "vit", f"{many}: self-attention over all tokens (ViT)"


def _usual_side(shorter_side: int) -> int:
    """The images' own side where it is small, in steps of 4 pixels; else 224, what released networks are of."""
    return min(224, max(8, shorter_side // 4 * 4))


def _is_sparse(facts: CorpusFacts) -> bool:
    return facts.num_classes > 0 and 0 < facts.num_labelled < FEW_PER_CLASS * facts.num_classes


def _batch(facts: CorpusFacts, family: Family) -> int:
    """The largest power of two that leaves an epoch enough steps."""
    images = facts.num_images if family == "mae_vit" else facts.num_labelled
    fitting = max(8, images // _STEPS_PER_EPOCH)
    return int(min(_LARGEST_BATCH[family], 1 << (fitting.bit_length() - 1)))


def _learning_rate(family: Family, batch: int) -> float:
    """Of AdamW: what papers give for Transformers goes with the batch (DeiT, Swin, MAE); CNNs keep theirs."""
    per_image = {
        "mae_vit": 1.5e-4 / 256,
        "vit": 1e-3 / 1024,
        "swin": 1e-3 / 1024,
        "two_stage_vit": 1e-3 / 1024,
    }
    return round(per_image[family] * batch, 7) if family in per_image else 2e-3


def _augment(facts: CorpusFacts, choice: Choice) -> dict[str, Any]:
    if choice.image_size <= SMALL_IMAGE:
        basic: dict[str, Any] = {"crop": "pad", "pad": max(1, choice.image_size // 14), "flip": True}
    else:
        basic = {"crop": "random_resized", "flip": True}
    if choice.family != "mae_vit" and (
        _is_sparse(facts) or choice.family in ("vit", "swin", "two_stage_vit")
    ):
        basic |= {"randaugment": {"layers": 2, "magnitude": 9}, "mixup": 0.8}
    return basic


def _model(choice: Choice) -> dict[str, Any]:
    side, small = choice.image_size, choice.image_size <= SMALL_IMAGE
    if choice.family in ("resnet_cbam", "efficientnet_se"):
        args: dict[str, Any] = {"args": {"output_stride": 8}} if small else {}
        gates = {"attention": {"gates": {"name": "cbam"}}} if choice.family == "resnet_cbam" else {}
        return {**args, **gates}
    if choice.family == "swin":
        return {"args": {"drop_path_rate": 0.2}}
    patch = _patch(side)
    args = {"args": {"patch_size": patch}} if patch != 16 else {}
    if choice.family == "two_stage_vit":
        return {**args, "attention": {"two_stage": {"window": 7, "num_global": 49}}}
    return args


def _patch(side: int) -> int:
    """The divisor of the side up to 16 that comes nearest to the usual number of tokens."""
    divisors = [patch for patch in range(1, min(16, side) + 1) if side % patch == 0]
    wanted = min(16.0, side / TOKENS_PER_SIDE)
    return min(divisors, key=lambda patch: (abs(patch - wanted), -patch))
