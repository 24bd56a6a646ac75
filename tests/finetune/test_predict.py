"""finetune.predict: what a network says of image files, and of files that are none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from configs.base import ConfigError
from data_pipeline.errors import DataError
from finetune.candidate import Candidate, load_candidates
from finetune.predict import app, predict
from tests.support.images import encoded_image
from tests.support.releases import make_release

LABELS = [f"label {n}" for n in range(10)]


@pytest.fixture
def candidate(tmp_path: Path) -> Candidate:
    run = make_release(tmp_path / "run", channels=3, label_names=LABELS)
    return load_candidates([str(run)], device=torch.device("cpu"))[0]


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"image.{suffix}" for suffix in ("png", "jpg", "webp")]
    for number, (path, kind) in enumerate(zip(paths, ("PNG", "JPEG", "WEBP"), strict=True)):
        path.write_bytes(encoded_image(number, kind, size=(28, 28)))
    return paths


def test_probabilities_are_those_of_the_network_on_the_decoded_pixels(
    candidate: Candidate, images: list[Path]
) -> None:
    found = predict(candidate, images, top=10)
    assert [prediction.image for prediction in found] == [str(path) for path in images]
    pixels = torch.from_numpy(np.array(Image.open(images[0]))).permute(2, 0, 1)[None]  # PNG: no codec differs
    expected = candidate.model((pixels / 255 - 0.3) / 0.35).softmax(1)[0]
    got = {guess.label: guess.probability for guess in found[0].guesses}
    assert list(got) == [LABELS[place] for place in expected.argsort(descending=True).tolist()]
    assert [got[label] for label in LABELS] == pytest.approx(expected.tolist(), abs=1e-5)


def test_the_program_prints_labels_with_percentages_or_json(tmp_path: Path, images: list[Path]) -> None:
    run = make_release(tmp_path / "named", channels=3, label_names=LABELS)
    command = [str(run), *map(str, images)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.exception
    lines = result.output.splitlines()
    assert [line.split(": ")[0] for line in lines] == [str(path) for path in images]
    assert all(line.count("label ") == 3 and line.count(" %") == 3 for line in lines)
    told = json.loads(CliRunner().invoke(app, [*command, "--json", "--top", "1"]).output)
    assert [len(entry["guesses"]) for entry in told] == [1, 1, 1]
    assert f"{told[0]['guesses'][0]['label']} {100 * told[0]['guesses'][0]['probability']:.1f} %" in lines[0]


def test_every_file_that_is_no_image_is_named_at_once(candidate: Candidate, images: list[Path]) -> None:
    text = images[0].with_name("text.png")
    text.write_text("no image")
    cut = images[0].with_name("cut.jpg")
    cut.write_bytes(images[1].read_bytes()[:200])
    with pytest.raises(DataError) as failure:
        predict(candidate, [images[0], text, images[0].with_name("gone.png"), cut, text.parent], top=1)
    lines = str(failure.value).splitlines()
    assert len(lines) == 4
    assert "text.png' cannot be read: not an image; JPEG, PNG and WebP are" in lines[0]
    assert "gone.png': no such file" in lines[1] and "cut.jpg' cannot be read: truncated" in lines[2]
    assert "is a folder: name the files in it" in lines[3]


def test_classes_without_names_are_numbered_and_encoders_are_refused(
    tmp_path: Path, images: list[Path]
) -> None:
    cpu = torch.device("cpu")
    (nameless,) = load_candidates([str(make_release(tmp_path / "nameless", channels=3))], device=cpu)
    assert predict(nameless, images[:1], top=1)[0].guesses[0].label.startswith("class ")
    (encoder,) = load_candidates([str(make_release(tmp_path / "encoder", num_classes=0))], device=cpu)
    with pytest.raises(ConfigError, match="'encoder' is an encoder: it has no classes to predict"):
        predict(encoder, images, top=1)
