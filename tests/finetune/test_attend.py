"""finetune.attend: a picture of real maps for the images asked for, and clear refusals."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import timm
import torch
from timm.models import save_for_hf
from typer.testing import CliRunner

from configs.base import ConfigError
from finetune.attend import app, look, open_gallery
from finetune.candidate import Candidate, load_candidates
from finetune.overlay import Column, Panel, blend, draw_overlays
from models.attention_maps import AttentionMaps
from models.energy_maps import EnergyMaps
from tests.support.shards import make_shards

SAMPLE = "mirada://sample/test"
VIT = ("vit_tiny_patch16_224", {"img_size": 28, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3})
CNN = ("nf_seresnet26", {"depths": (1, 1), "channels": (16, 32), "stem_type": "3x3", "stem_chs": 8})


def make_candidate(
    run: Path, kind: tuple[str, dict[str, object]], channels: int = 1, num_classes: int = 10
) -> Candidate:
    torch.manual_seed(0)
    name, args = kind
    args = {**args, "in_chans": channels, "num_classes": num_classes}
    stats = {"mean": (0.3,) * channels, "std": (0.35,) * channels, "input_size": (channels, 28, 28)}
    model = timm.create_model(name, pretrained_cfg_overlay=stats, **args)
    save_for_hf(model, run / "release", model_config={"model_args": args}, safe_serialization=True)
    return load_candidates([str(run)], device=torch.device("cpu"))[0]


def test_images_are_taken_from_the_classes_in_turn() -> None:
    gallery = open_gallery(SAMPLE, [], count=12)
    assert gallery.labels == (*range(10), 0, 1)
    assert gallery.names[:2] == ("T-shirt/top", "Trouser") and len(set(gallery.sample_ids.tolist())) == 12


def test_a_cnn_shows_the_last_stage_as_fine_as_the_teachers_grid(tmp_path: Path) -> None:
    gallery = open_gallery(SAMPLE, [], count=3)
    vit, cnn = make_candidate(tmp_path / "vit", VIT), make_candidate(tmp_path / "cnn", CNN)
    teacher, student = look([vit, cnn], gallery)
    assert (teacher.subtitle, student.subtitle) == (
        "attention of blocks.1, 7 x 7",
        "energy of stages.0, 7 x 7",
    )

    pixels = torch.from_numpy(gallery.read(vit.data_config(SAMPLE))).permute(0, 3, 1, 2)
    images = (pixels / 255 - 0.3) / 0.35
    with torch.no_grad(), AttentionMaps(vit.model) as attention, EnergyMaps(cnn.model, (1,)) as energy:
        logits, _ = vit.model(images), cnn.model(images)
    torch.testing.assert_close(teacher.maps, attention.take()[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(student.maps, energy.take()[0], rtol=1e-4, atol=1e-6)
    best, label = int(logits[0].argmax()), gallery.labels[0]
    assert teacher.panels[0].correct is (best == label)
    assert teacher.panels[0].text.startswith(gallery.class_names[best])


def test_the_program_draws_samples_and_image_files(tmp_path: Path) -> None:
    for name, kind in (("vit", VIT), ("cnn", CNN)):
        make_candidate(tmp_path / name, kind, channels=3)
    photograph = tmp_path / "photo.JPG"
    cv2.imwrite(str(photograph), np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))
    out = tmp_path / "pictures" / "attention.png"
    command = [
        str(tmp_path / "vit"),
        str(tmp_path / "cnn"),
        str(photograph),
        "--data",
        SAMPLE,
        "--count",
        "2",
    ]
    result = CliRunner().invoke(app, [*command, "--out", str(out)])
    assert result.exit_code == 0, (result.output, result.exception)
    assert "3 image(s), 2 network(s)" in result.output
    picture = cv2.imread(str(out))
    assert picture.shape[0] > 700 and picture.shape[1] > 600
    assert [path.name for path in out.parent.iterdir()] == ["attention.png"]


def test_an_encoder_predicts_nothing_and_a_classifier_may_look_at_images_without_labels(
    tmp_path: Path,
) -> None:
    encoder = make_candidate(tmp_path / "encoder", VIT, num_classes=0)
    (column,) = look([encoder], open_gallery(SAMPLE, [], count=2))
    assert [(panel.text, panel.correct) for panel in column.panels] == [("", None)] * 2
    make_candidate(tmp_path / "vit", VIT)
    make_shards(tmp_path / "unlabelled", [3], num_classes=None)
    for name, data in (("encoder", SAMPLE), ("vit", str(tmp_path / "unlabelled"))):
        words = [str(tmp_path / name), "--data", data, "--count", "2", "--out", str(tmp_path / f"{name}.png")]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, (result.output, result.exception)


@pytest.mark.parametrize("num_images", [1, 6, 7, 10])
def test_a_picture_has_a_row_per_image_in_one_block_or_two(num_images: int, tmp_path: Path) -> None:
    panels = tuple(Panel(text=f"class {i}", correct=i % 2 == 0) for i in range(num_images))
    column = Column(title="a network", subtitle="energy", maps=torch.rand(num_images, 7, 7), panels=panels)
    images = np.full((num_images, 28, 28, 1), 200, np.uint8)
    draw_overlays(images, panels, [column], tmp_path / "p.png", note="a note")
    height, width = cv2.imread(str(tmp_path / "p.png")).shape[:2]
    rows, blocks = (num_images, 1) if num_images <= 6 else (-(-num_images // 2), 2)
    panel, margins = 1.45 * 160, 2.0 * 160
    assert rows * panel < height < rows * 1.3 * panel + margins
    assert 2 * blocks * panel < width < 2 * blocks * 1.3 * panel + margins


def test_the_overlay_is_brightest_where_the_map_is_greatest_and_constant_maps_are_calm() -> None:
    attention = torch.zeros(7, 7)
    attention[1, 5] = 1.0
    picture = blend(np.full((28, 28, 1), 60, np.uint8), attention)
    brightest = np.unravel_index(picture.sum(axis=2).argmax(), picture.shape[:2])
    assert brightest[0] // (256 / 7) == 1 and brightest[1] // (256 / 7) == 5
    assert blend(np.full((28, 28, 3), 60, np.uint8), torch.ones(7, 7)).std(axis=(0, 1)).max() < 1e-3


def test_what_cannot_be_shown_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to look at: give image files, or --data"):
        open_gallery(None, [], count=1)
    text = tmp_path / "text.png"
    text.write_text("no image")
    vit = make_candidate(tmp_path / "vit", VIT)
    with pytest.raises(ConfigError, match=r"text\.png' cannot be read: not an image; JPEG, PNG and WebP are"):
        look([vit], open_gallery(None, [text], count=1))
    with pytest.raises(ConfigError, match=r"gone\.png': no such file"):
        look([vit], open_gallery(None, [tmp_path / "gone.png"], count=1))
    other = text.rename(tmp_path / "picture.gif")
    result = CliRunner().invoke(app, [str(tmp_path / "vit"), str(other), "--out", str(tmp_path / "p.png")])
    assert isinstance(result.exception, ConfigError)
    assert "picture.gif' cannot be read: not an image" in str(result.exception)
