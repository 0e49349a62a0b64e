"""Sixteen common networks: half of all channels are pruned, and the result must equal the masked network exactly."""

import pytest
from random_cuts import cut_and_check, liven
from torch import nn
from torchvision.models import get_model

from compressor.channels import analyse

SMALLEST = {"inception_v3": 80, "alexnet": 64, "squeezenet1_1": 64}  # the others take 32 x 32
NETWORKS = """
    resnet18 resnet50 resnext50_32x4d vgg16_bn alexnet densenet121 googlenet inception_v3 mobilenet_v2 mobilenet_v3_small
    mnasnet1_0 efficientnet_b0 shufflenet_v2_x1_0 squeezenet1_1 regnet_y_400mf convnext_tiny
""".split()


def build(name: str) -> nn.Module:
    slow = name in ("googlenet", "inception_v3", "vgg16_bn")  # to initialise weights that are overwritten at once
    model = get_model(name, num_classes=10, **({"init_weights": False} if slow else {}))
    if name in ("alexnet", "vgg16_bn"):  # the hundred million weights of the head add nothing to the test
        first = next(layer for layer in model.classifier if isinstance(layer, nn.Linear))
        model.classifier = nn.Sequential(nn.Linear(first.in_features, 64), nn.ReLU(), nn.Linear(64, 10))
    return liven(model)


@pytest.mark.parametrize("name", NETWORKS)
def test_half_the_channels_go_from(name: str) -> None:
    model, shape = build(name), (3, SMALLEST.get(name, 32), SMALLEST.get(name, 32))
    channels = analyse(model, shape)
    cut_and_check(model, shape, channels=channels)
    cut_and_check(model, shape, channels=channels.with_residual("scatter"))
