"""The models of `zoo.py`: their code, their inputs, and random weights that do not hide errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.hooks import RemovableHandle
from torchvision import models

from compressor.checkpoint import build
from compressor.network.inputs import Inputs

HERE = Path(__file__).resolve()
SEED = 0
LAYERS = nn.Linear, _ConvNd
TIMM = """
resnet26d seresnet50 resnext50_32x4d rexnet_100 ghostnet_100 hrnet_w18_small dla34 res2net50_26w_4s skresnet18 cspresnet50
ese_vovnet19b_dw nf_resnet50 tf_efficientnetv2_b0 mixnet_s lcnet_100 mobilevit_s mobileone_s0 repvgg_a2 convnextv2_atto
vit_small_patch16_224 deit3_small_patch16_224 beit_base_patch16_224 swinv2_tiny_window8_256 maxvit_tiny_rw_224
coatnet_0_rw_224 levit_128 efficientformer_l1 edgenext_small poolformer_s12 xcit_tiny_12_p8_224 cait_xxs24_224
crossvit_tiny_240 pvt_v2_b0 twins_pcpvt_small mobilenetv4_conv_small fastvit_t8 tiny_vit_5m_224 eva02_tiny_patch14_224
hiera_tiny_224
"""


@dataclass(frozen=True)
class Entry:
    """A model: the code that builds it, and its inputs."""

    name: str
    family: str
    arch: str
    inputs: Inputs

    def build(self) -> nn.Module:
        torch.manual_seed(SEED)
        model = build(self.arch).eval()
        enliven(model)
        normalise(model, self.inputs)
        return model

    @torch.no_grad()
    def form(self, model: nn.Module) -> str:
        """The types and shapes of the output of `model` for one sample."""
        return form_of(model(*self.inputs.random(1)), self.family)


def zoo() -> list[Entry]:
    """All models, in the order of the table."""
    import timm  # here and below: every process imports this file, and few need these

    entries = []
    for part in (models, models.segmentation, models.detection, models.video, models.optical_flow):
        family = "classification" if part is models else part.__name__.rpartition(".")[2].replace("_", " ")
        for name in models.list_models(module=part):
            entries.append(Entry(name, family, f"torchvision:{name}", torchvision_inputs(name, family)))
    for name in TIMM.split():
        entries.append(Entry(name, "timm", f"timm:{name}", Inputs.of(timm.get_pretrained_cfg(name).input_size)))
    for factory in (ViTForImageClassification, SwinForImageClassification, SegformerForSemanticSegmentation):
        entries.append(Entry(factory.__name__, "Hugging Face", f"{HERE}:{factory.__name__}", Inputs.of((3, 224, 224))))
    return entries


def torchvision_inputs(name: str, family: str) -> Inputs:
    if family == "video":
        side = 224 if name.startswith(("mvit", "s3d")) else 112
        return Inputs.of((3, 16, side, side))
    if family == "optical flow":
        return Inputs.of([(3, 128, 128), (3, 128, 128)])
    side = {"inception_v3": 299, "ssd300_vgg16": 300}.get(name, 320 if family == "detection" else 224)
    return Inputs.of((3, side, side))


def ViTForImageClassification() -> nn.Module:  # noqa: N802  # the names of the classes that they build
    import transformers

    config = transformers.ViTConfig(hidden_size=192, num_attention_heads=3, intermediate_size=768, num_labels=1000)
    return transformers.ViTForImageClassification(config)


def SwinForImageClassification() -> nn.Module:  # noqa: N802
    import transformers

    return transformers.SwinForImageClassification(transformers.SwinConfig(num_labels=1000))


def SegformerForSemanticSegmentation() -> nn.Module:  # noqa: N802
    import transformers

    return transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(num_labels=150))


def enliven(model: nn.Module) -> None:
    """Replace constant initial values by random ones: zeros by small values, others by values between 0.5 and 1.5.

    A layer scale of 1e-6, a zero-initialised residual branch or an identity batch norm would hide errors in pruning.
    """
    random = torch.Generator().manual_seed(SEED)
    statistics = [tensor for name, tensor in model.named_buffers() if name.endswith(("running_mean", "running_var"))]
    with torch.no_grad():
        for tensor in [*model.parameters(), *statistics]:
            first = tensor.flatten()[0].item()
            if (tensor == first).all():
                tensor.normal_(0, 0.1, generator=random) if first == 0 else tensor.uniform_(0.5, 1.5, generator=random)


def normalise(model: nn.Module, inputs: Inputs) -> None:
    """Scale each layer so that its outputs have variance one (Mishkin and Matas, ICLR 2016, arXiv 1511.06422), biases with it.

    The outputs of random networks otherwise hardly depend on the input: gates are saturated, and detectors find nothing.
    """

    @torch.no_grad()
    def scale(layer: nn.Module, args: object, output: Tensor) -> Tensor:
        hooks.pop(layer).remove()
        spread = output.std().item()
        for parameter in layer.parameters(recurse=False):
            parameter.div_(spread)
        return output / spread

    layers = [layer for layer in model.modules() if isinstance(layer, LAYERS)]
    hooks: dict[nn.Module, RemovableHandle] = {layer: layer.register_forward_hook(scale) for layer in layers}
    with torch.no_grad():
        model(*inputs.random(1))
    for hook in hooks.values():  # of layers that do not run
        hook.remove()


def form_of(output: object, family: str) -> str:
    """The types, keys and shapes of what a model returns. The number of objects that a detector finds is not included."""
    if isinstance(output, Tensor):
        shape = list(output.shape)
        return f"{str(output.dtype)[6:]}{['any', *shape[1:]] if family == 'detection' else shape}"
    kind = type(output).__name__
    if isinstance(output, Mapping):
        return f"{kind}({', '.join(f'{key}={form_of(value, family)}' for key, value in output.items())})"
    if isinstance(output, list | tuple):
        return f"{kind}({', '.join(form_of(value, family) for value in output)})"
    return kind
