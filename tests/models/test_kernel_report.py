"""models.kernel_report: says of each layer the kernel that torch's profiler sees run in it."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from configs.base import ConfigError
from configs.training import ModelConfig
from models.activation_memory import peak_activations
from models.attention import attention_layers, use_attend, wished_kernel
from models.build import build_model
from models.complexity import count_flops
from models.kernel_report import layers_by_kernel, report_kernels

CPU = torch.device("cpu")
SEEN = {
    "aten::_scaled_dot_product_flash_attention_for_cpu": "sdpa: flash",
    "aten::_scaled_dot_product_flash_attention": "sdpa: flash",
    "aten::_scaled_dot_product_efficient_attention": "sdpa: efficient",
    "aten::_scaled_dot_product_cudnn_attention": "sdpa: cudnn",
    "aten::_scaled_dot_product_attention_math": "sdpa: math",
    "mirada::attend_in_blocks": "blocked",
    "mirada::attend_in_float8": "float8: emulated",
}
NETWORKS = {
    "vit": ("test_vit", {"img_size": 32}),
    "vit with dropped scores": ("test_vit", {"img_size": 32, "attn_drop_rate": 0.1}),
    "swin": ("swin_tiny_patch4_window7_224", {"img_size": 32, "window_size": 4, "depths": (2, 1, 1, 1)}),
    "swin v2": ("swinv2_tiny_window8_256", {"img_size": 32, "window_size": 4, "depths": (2, 1, 1, 1)}),
    "eva": ("eva02_tiny_patch14_224", {"img_size": 28, "depth": 2}),
    "coatnet": ("coatnet_nano_rw_224", {"img_size": 64}),
    "xcit": ("xcit_nano_12_p16_224", {"depth": 2, "img_size": 32}),
}


@pytest.fixture(autouse=True)
def _small_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """The maps of these small networks are as if they outgrew it."""
    monkeypatch.setattr("models.attention._CACHED_BYTES", 0)


def build(name: str, *, ours: bool = True) -> tuple[nn.Module, tuple[int, int, int]]:
    torch.manual_seed(0)
    architecture, args = NETWORKS[name]
    model = timm.create_model(architecture, num_classes=3, **args)
    return use_attend(model) if ours else model, (3, args["img_size"], args["img_size"])


def seen_by_the_profiler(
    model: nn.Module, images: Tensor, precision: torch.dtype | None = None
) -> dict[str, str]:
    """The kernel of each layer from the operators that really ran within its forward."""
    opened: list[record_function] = []

    def enter(name: str) -> object:
        def hook(module: nn.Module, inputs: object) -> None:
            opened.append(record_function(f"layer {name}"))
            opened[-1].__enter__()

        return hook

    for name, layer in attention_layers(model).items():
        layer.register_forward_pre_hook(enter(name))  # type: ignore[arg-type]
        layer.register_forward_hook(lambda *_: opened.pop().__exit__(None, None, None))
    kind = images.device.type
    lowered = torch.autocast(kind, dtype=precision, enabled=precision is not None)
    with profile(activities=[ProfilerActivity.CPU]) as record, lowered:
        model(images)
    found = {}
    for event in record.events():
        if event.name.startswith("layer "):
            names = {child.name for child in descendants(event)}
            found[event.name[6:]] = next((SEEN[name] for name in sorted(names & SEEN.keys())), "math")
    return found


def descendants(event: object) -> Iterator[object]:
    for child in event.cpu_children:  # type: ignore[attr-defined]
        yield child
        yield from descendants(child)


@pytest.mark.parametrize("ours", [True, False], ids=["attend", "timm"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_it_reports_what_the_profiler_sees(name: str, precision: str, ours: bool) -> None:
    model, shape = build(name, ours=ours)
    reported = report_kernels(model, shape, device=CPU, precision=precision)  # type: ignore[arg-type]
    dtype = torch.bfloat16 if precision == "bf16" else None
    assert reported == seen_by_the_profiler(model, torch.rand(2, *shape), dtype)
    assert reported


def test_the_wish_of_a_recipe_shows() -> None:
    model, shape = build("swin")
    expected = {"auto": "blocked", "sdpa": "sdpa: math", "math": "math", "float8": "float8: emulated"}
    for kernel, name in expected.items():
        use_attend(model, kernel)  # type: ignore[arg-type]
        kernels = report_kernels(model, shape, device=CPU, precision="fp32")
        assert layers_by_kernel(kernels) == {name: list(attention_layers(model))}
        assert seen_by_the_profiler(copy.deepcopy(model), torch.rand(2, *shape)) == kernels


def test_a_wish_that_cannot_be_met_here_says_why() -> None:
    model, shape = build("vit")
    use_attend(model, "flash")
    with pytest.raises(
        ConfigError, match=r"model\.attention\.kernel: .* the tensors are on 'cpu' and it runs on CUDA"
    ):
        report_kernels(model, shape, device=CPU, precision="bf16")


def test_a_network_is_built_on_the_processor_whatever_its_kernel() -> None:
    """The wish is for the device that it is trained on, where the report is asked for."""
    wish = {"name": "test_vit", "attention": {"kernel": "flash"}}
    model = build_model(ModelConfig.model_validate(wish), num_classes=3, in_chans=3, image_size=32)
    assert wished_kernel(model) == "flash"
    assert peak_activations(model, (2, 3, 32, 32), precision="bf16") > 0
    assert count_flops(model, (3, 32, 32)) > 0


def test_flash_in_float32_is_refused_before_a_gpu_is_there() -> None:
    """Fake tensors may be on a GPU that does not exist."""
    model, shape = build("vit")
    use_attend(model, "flash")
    with pytest.raises(ConfigError, match="float16 or bfloat16, and q, k, v are torch\\.float32"):
        report_kernels(model, shape, device=torch.device("cuda"), precision="fp32")


def test_a_report_leaves_weights_statistics_randomness_and_hooks_alone() -> None:
    model = timm.create_model("coatnet_nano_rw_224", num_classes=3, img_size=64, drop_path_rate=0.5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    report_kernels(model, (3, 64, 64), device=CPU, precision="fp32")
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_cnn_has_nothing_to_report() -> None:
    model = timm.create_model("resnet10t", num_classes=3)
    assert report_kernels(model, (3, 32, 32), device=CPU, precision="fp32") == {}


def test_a_tensor_that_is_neither_weight_nor_buffer_is_no_obstacle() -> None:
    class Tinted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vit = build("vit")[0]
            self.tint = torch.ones(3, 1, 1)

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.vit(images * self.tint)
            return logits

    model = Tinted()
    kernels = report_kernels(model, (3, 32, 32), device=CPU, precision="fp32")
    assert kernels == dict.fromkeys(attention_layers(model), "sdpa: flash")


def test_a_network_that_shapes_cannot_run_is_reported_as_unknown() -> None:
    class Counting(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images[: int((images > 0).sum())]

    assert report_kernels(Counting(), (3, 8, 8), device=CPU, precision="fp32") == {}


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["vit", "swin", "swin v2"])
def test_it_reports_what_the_profiler_sees_on_a_gpu(name: str, precision: str) -> None:
    model, shape = build(name)
    device = torch.device("cuda")
    reported = report_kernels(model, shape, device=device, precision=precision)  # type: ignore[arg-type]
    if any(kernel.startswith("flash: ") for kernel in reported.values()):
        pytest.skip("FlashAttention's packages have no operators that the profiler names alike")
    dtype = torch.bfloat16 if precision == "bf16" else None
    assert reported == seen_by_the_profiler(model.to(device), torch.rand(2, *shape, device=device), dtype)
