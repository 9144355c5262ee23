"""The networks of models.py, exported on the machine itself with random weights: speed does not depend on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

TOKENS = 128
OPSET = 17
BATCH_AXIS = "N"


@dataclass(frozen=True)
class Network:
    """How a network is made and called. `family` is what ONNX Runtime's transformer optimizer calls it."""

    make: Callable[[], nn.Module]
    inputs: dict[str, tuple[int, ...]]  # by name, without the batch
    family: str | None = None
    heads: dict[str, int] = field(default_factory=lambda: {"num_heads": 12, "hidden_size": 768})


def _torchvision(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import torchvision

        return torchvision.models.get_model(name, weights=None)

    return make


def _bert() -> nn.Module:
    import transformers

    class Bert(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = transformers.BertModel(transformers.BertConfig(attn_implementation="sdpa"))

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    return Bert()


def _llama() -> nn.Module:
    """As small Llamas are: rotary embeddings, four heads to a key, gated layers."""
    import transformers

    class Llama(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            sizes = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8}
            heads = {"num_attention_heads": 16, "num_key_value_heads": 4}
            config = transformers.LlamaConfig(**sizes, **heads, attn_implementation="sdpa", use_cache=False)
            self.llama = transformers.LlamaModel(config)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.llama(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    return Llama()


class _AcrossChannels(torch.autograd.Function):
    """Local response normalisation over 3 channels, as ONNX's LRN: PyTorch exports its own with an If."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.local_response_norm(x, 3, 5e-5, 0.75)

    @staticmethod
    def symbolic(g: Any, x: Any) -> Any:
        return g.op("LRN", x, size_i=3, alpha_f=5e-5, beta_f=0.75).setType(x.type())


class _Norm(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _AcrossChannels.apply(x)


def _lenet() -> nn.Module:
    """LeNet-5 as Caffe has it."""
    return nn.Sequential(
        *(nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10)),
    )


def _cifarnet() -> nn.Module:
    """Caffe's cifar10_full."""
    norm = _Norm()
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 5, padding=2), nn.MaxPool2d(3, 2, ceil_mode=True), nn.ReLU(), norm),
        *(nn.Conv2d(32, 32, 5, padding=2), nn.ReLU(), nn.AvgPool2d(3, 2, ceil_mode=True), norm),
        *(nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.AvgPool2d(3, 2, ceil_mode=True)),
        *(nn.Flatten(), nn.Linear(1024, 10)),
    )


IMAGE = {"x": (3, 224, 224)}
TEXT = {"input_ids": (TOKENS,), "attention_mask": (TOKENS,)}
NETWORKS = {
    "lenet5": Network(_lenet, {"x": (1, 28, 28)}),
    "cifarnet": Network(_cifarnet, {"x": (3, 32, 32)}),
    "alexnet": Network(_torchvision("alexnet"), IMAGE),
    "vgg16": Network(_torchvision("vgg16"), IMAGE),
    "resnet50": Network(_torchvision("resnet50"), IMAGE),
    "vit_b_16": Network(_torchvision("vit_b_16"), IMAGE, "vit"),
    "bert_base": Network(_bert, TEXT, "bert"),
    "llama": Network(_llama, TEXT, "gpt2", {"num_heads": 16, "hidden_size": 1024}),
}


def module(name: str) -> nn.Module:
    """The network with seeded random weights, where PyTorch starts with zeros or ones too."""
    torch.manual_seed(0)
    torch.backends.mha.set_fastpath_enabled(False)  # else attention is one operator that has no ONNX form
    made = NETWORKS[name].make().eval()
    with torch.no_grad():
        for part in made.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_(0, 0.1)
                part.running_var.uniform_(0.5, 1.5)
            elif isinstance(part, nn.Linear) and not part.weight.any():  # the head of torchvision's ViT
                part.weight.normal_(0, 0.02)
    return made


def sample(name: str, batch: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random inputs: normal numbers for images, token ids and a mask that hides the end of some sequences."""
    generator = torch.Generator().manual_seed(seed)
    result: dict[str, torch.Tensor] = {}
    for key, shape in NETWORKS[name].inputs.items():
        if key == "input_ids":
            result[key] = torch.randint(0, 30000, (batch, *shape), generator=generator)
        elif key == "attention_mask":
            lengths = torch.randint(shape[0] // 2, shape[0] + 1, (batch, 1), generator=generator)
            result[key] = (torch.arange(shape[0]) < lengths).to(torch.int64)
        else:
            result[key] = torch.randn(batch, *shape, generator=generator)
    return result


def export(name: str, path: Path) -> None:
    """Write the network as ONNX with a free batch dimension: TorchScript for images, dynamo for text."""
    inputs = sample(name, 2)
    options: dict[str, Any] = {"input_names": list(inputs), "output_names": ["y"]}
    if NETWORKS[name].inputs == TEXT:
        batch = torch.export.Dim(BATCH_AXIS, min=1, max=256)
        shapes = tuple({0: batch} for _ in inputs)
        options.update(dynamic_shapes=shapes, dynamo=True, external_data=False, verbose=False)
    else:
        axes = {key: {0: BATCH_AXIS} for key in (*inputs, "y")}
        options.update(dynamic_axes=axes, dynamo=False, opset_version=OPSET)
    torch.onnx.export(module(name), tuple(inputs.values()), str(path), **options)
