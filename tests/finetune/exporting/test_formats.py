"""ONNX, INT8 ONNX and torch.export: the same logits in another program, any batch; and what belongs to which format."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from configs.base import ConfigError
from engine.world import World
from finetune.candidate import load_candidates
from finetune.evaluating.comparison import compare
from finetune.export import app
from finetune.exporting import formats, onnx_file
from finetune.exporting.onnx_file import check_onnx, random_images
from finetune.exporting.onnx_int8 import calibration_batches, quantize
from finetune.predict import app as predict_app
from models.build import input_spec, load_release
from tests.support.images import encoded_image
from tests.support.releases import make_release
from tests.support.shards import make_shards

pytest.importorskip("onnxruntime")

pytestmark = pytest.mark.slow  # torch takes seconds for each export

SAMPLE = "mirada://sample/test"
LABELS = [f"label {n}" for n in range(10)]


def export(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CNN and a ViT as ONNX files, cnn.onnx and vit.onnx, with their releases beside."""
    folder = tmp_path_factory.mktemp("exported")
    for kind in ("cnn", "vit"):
        make_release(folder / kind, kind=kind, label_names=LABELS)
        said = export(folder / kind, folder / f"{kind}.onnx", "--format", "onnx")
        assert "in ONNX Runtime, any batch" in said
    return folder


@pytest.mark.parametrize("kind", ["cnn", "vit"])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_plain_onnxruntime_gives_torchs_logits_for_any_batch(exported: Path, kind: str, batch: int) -> None:
    import onnxruntime

    model = load_release(str(exported / kind)).eval()
    images = torch.randn(batch, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(str(exported / f"{kind}.onnx"), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": images.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(logits, model(images).numpy(), rtol=1e-4, atol=1e-4)


def test_an_onnx_file_is_evaluated_and_predicts_as_its_release_does(exported: Path, tmp_path: Path) -> None:
    photograph = tmp_path / "photo.png"
    photograph.write_bytes(encoded_image(7, size=(40, 30)))
    said = []
    for reference in ("cnn", "cnn.onnx"):
        command = [str(exported / reference), str(photograph), "--json", "--top", "2"]
        result = CliRunner().invoke(predict_app, command)
        assert result.exit_code == 0, result.exception
        said.append(json.loads(result.output))
    (release,), (onnx,) = said
    assert [guess["label"] for guess in release["guesses"]] == [guess["label"] for guess in onnx["guesses"]]
    for one, other in zip(release["guesses"], onnx["guesses"], strict=True):
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-4)
    (candidate,) = load_candidates([str(exported / "cnn.onnx")], device=torch.device("cpu"))
    assert candidate.label_names == tuple(LABELS) and candidate.num_classes == 10
    assert candidate.spec.mean == pytest.approx((0.3,)) and candidate.input_shape == (1, 28, 28)


def test_logits_that_differ_are_refused_and_leave_no_file(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = load_release(str(exported / "cnn")).eval()
    torch.nn.init.normal_(other.get_classifier().weight)
    with pytest.raises(ConfigError, match=r"logits differ from torch's by .* \(allowed is 0\.0001\)"):
        check_onnx(other, input_spec(other), exported / "cnn.onnx")
    written = exported / "cnn.onnx"
    monkeypatch.setattr(onnx_file, "_export", lambda model, spec, path: shutil.copy(written, path))
    monkeypatch.setattr(onnx_file, "TOLERANCE", -1.0)
    with pytest.raises(ConfigError, match="logits differ"):
        export(exported / "cnn", tmp_path / "new.onnx", "--format", "onnx")
    assert list(tmp_path.iterdir()) == []


def test_eight_bits_are_compared_with_thirty_two(exported: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "small.onnx"
    unnamed = make_release(tmp_path / "cnn")  # the same network, of no classes but the data's
    said = export(unnamed, out, "--format", "onnx-int8", "--data", SAMPLE)
    assert "1,000 images" in said and "8 bits lose" in said and "images/s" in said
    import onnx

    kinds = {node.op_type for node in onnx.load(str(out)).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    full, small = load_candidates([str(exported / "cnn.onnx"), str(out)], device=torch.device("cpu"))
    images = random_images(full.spec, 64)
    agree = (full.model(images).argmax(1) == small.model(images).argmax(1)).float().mean()
    assert float(agree) > 0.8
    assert [path.name for path in out.parent.iterdir()] == ["small.onnx"]


def test_data_that_a_network_cannot_be_compared_on_are_refused_before_anything_is_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "write_onnx", lambda model, path: pytest.fail("was exported"))
    few = make_release(tmp_path / "few", num_classes=3)
    with pytest.raises(ConfigError, match=r"few' tells 3 classes apart and the data .* has 10"):
        export(few, tmp_path / "out.onnx", "--format", "onnx-int8", "--data", SAMPLE)
    make_shards(tmp_path / "unlabelled", [2], num_classes=None)
    with pytest.raises(ConfigError, match="have no labels, so there is nothing to score them by"):
        export(few, tmp_path / "out.onnx", "--format", "onnx-int8", "--data", tmp_path / "unlabelled")


def test_an_onnx_file_stays_on_the_cpu_whichever_device_is_chosen(exported: Path) -> None:
    (candidate,) = load_candidates([str(exported / "cnn.onnx")], device=torch.device("meta"))
    assert next(candidate.model.parameters()).device.type == "cpu"


@pytest.mark.gpu
def test_an_onnx_file_is_evaluated_beside_a_network_on_the_gpu(exported: Path) -> None:
    world = World(rank=0, size=1, local_rank=0, device=torch.device("cuda"))
    references = [str(exported / name) for name in ("cnn", "cnn.onnx")]
    found = compare(load_candidates(references, device=world.device), SAMPLE, batch_size=100, world=world)
    release, onnx = found.rows
    assert onnx.top1 == pytest.approx(release.top1, abs=0.5)
    assert found.timing.startswith("Forward alone, warm, fp32, cuda; cnn.onnx: cpu, ")


def test_a_vit_in_eight_bits_still_tells_what_it_told(exported: Path, tmp_path: Path) -> None:
    (full,) = load_candidates([str(exported / "vit.onnx")], device=torch.device("cpu"))
    quantize(exported / "vit.onnx", tmp_path / "small.onnx", full, SAMPLE)
    (small,) = load_candidates([str(tmp_path / "small.onnx")], device=torch.device("cpu"))
    images = torch.from_numpy(next(calibration_batches(full, SAMPLE)))
    assert float((full.model(images).argmax(1) == small.model(images).argmax(1)).float().mean()) > 0.8


@pytest.mark.parametrize("kind", ["cnn", "vit"])
def test_a_torch_program_runs_without_the_code_of_its_network(tmp_path: Path, kind: str) -> None:
    run = make_release(tmp_path / kind, kind=kind, label_names=LABELS)
    out = tmp_path / "program.pt2"
    assert "torch.export.load" in export(run, out, "--format", "torch")
    extra = {"mirada.json": ""}
    program = torch.export.load(out, extra_files=extra).module()
    model = load_release(str(run)).eval()
    for batch in (1, 4):
        images = torch.randn(batch, 1, 28, 28)
        torch.testing.assert_close(program(images), model(images), rtol=1e-5, atol=1e-5)
    assert json.loads(extra["mirada.json"])["label_names"] == LABELS


def test_what_does_not_belong_together_is_said_at_once(exported: Path, tmp_path: Path) -> None:
    run, out = exported / "cnn", tmp_path / "out.onnx"
    with pytest.raises(ConfigError, match=r"--push belongs to --format timm, not to onnx\n--data belongs to"):
        export(run, out, "--format", "onnx", "--push", "hf-hub:a/b", "--data", SAMPLE)
    with pytest.raises(ConfigError, match="onnx-int8 needs --data DIR"):
        export(run, out, "--format", "onnx-int8")
    with pytest.raises(ConfigError, match=r"'.*student': give a name that ends in \.onnx"):
        export(run, tmp_path / "student", "--format", "onnx")
    with pytest.raises(ConfigError, match=r"give a name that ends in \.pt2"):
        export(run, out, "--format", "torch")
    with pytest.raises(ConfigError, match="'flowers': write NAME@teacher or NAME@student"):
        export(run, out, "--format", "mlflow", "--register", "flowers")
    with pytest.raises(ConfigError, match="'a/b' is no place on the hub: write hf-hub:OWNER/NAME"):
        export(run, out, "--push", "a/b")
    result = CliRunner().invoke(app, [str(run), str(out), "--format", "tflite"])
    assert result.exit_code == 2 and "'tflite' is not one of 'timm', 'onnx'" in result.output


def test_a_file_that_is_no_onnx_file_of_ours_is_refused(exported: Path, tmp_path: Path) -> None:
    import onnx

    text = tmp_path / "text.onnx"
    text.write_text("no network")
    stranger = onnx.load(str(exported / "cnn.onnx"))
    del stranger.metadata_props[:]
    onnx.save(stranger, str(tmp_path / "stranger.onnx"))
    for name, words in (
        ("text", "is no ONNX file that can be run"),
        ("gone", "no such file"),
        ("stranger", "only ONNX files that `mirada export` wrote can be used here"),
    ):
        with pytest.raises(ConfigError, match=words):
            load_candidates([str(tmp_path / f"{name}.onnx")], device=torch.device("cpu"))
