"""Hugging Face networks as users have them: pickled, or as weights for a function. Nothing is downloaded."""

import json
from pathlib import Path

import onnx
import pytest
import torch
from small import compress

import compressor
from compressor.network.outputs import tensors_in
from compressor.report import read_report

NETS = """
from transformers import (
    SegformerConfig, SegformerForSemanticSegmentation, SwinConfig, SwinForImageClassification, ViTConfig,
    ViTForImageClassification,
)

def vit():
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    return ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, num_labels=10, **sizes))

def swin():
    sizes = dict(embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4)
    return SwinForImageClassification(SwinConfig(image_size=32, patch_size=2, num_labels=10, **sizes))

def segformer():
    sizes = dict(depths=[1, 1, 1, 1], hidden_sizes=[16, 32, 40, 64], decoder_hidden_size=32)
    return SegformerForSemanticSegmentation(SegformerConfig(num_labels=5, **sizes))
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the code of the networks in nets.py."""
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def made(name: str) -> torch.nn.Module:
    names: dict[str, type[torch.nn.Module]] = {}
    exec(compile(NETS, "nets.py", "exec"), names)
    return names[name]()


def test_a_pickled_network_is_inspected_and_pruned_by_the_name_of_its_input(here: Path) -> None:
    torch.save(made("vit"), "vit.pt")
    view = json.loads(compress("inspect", "vit.pt", "--trust-pickle", "--json").stdout)
    assert view["inputs"] == {"images": [3, 32, 32]}  # its own settings say so
    stream, *others = view["groups"]
    assert stream["name"] == "vit.embeddings.patch_embeddings.projection" and len(others) >= 4
    named = ("--input", "pixel_values=1x3x32x32")
    result = compress("prune", "vit.pt", "--trust-pickle", *named, "--rate", "0.5", "--out", "half", "-q")
    assert result.exit_code == 0, result.output
    report = read_report(here / "half")
    assert abs(report.change.macs - 0.5) < 0.02 and report.inputs == {"pixel_values": [3, 32, 32]}
    assert [entry.name for entry in onnx.load("half/model.onnx").graph.input] == ["pixel_values"]
    small = compressor.load("half", arch="nets.py:vit")
    assert small(pixel_values=torch.randn(2, 3, 32, 32)).logits.shape == (2, 10)


def test_a_network_is_trained_and_measured_on_images(here: Path) -> None:
    torch.save(made("vit").state_dict(), "vit.pt")
    data = ("--data", "digits", "--size", "32", "--epochs", "1", "--optimizer", "adamw")
    result = compress("prune", "vit.pt", "--arch", "nets.py:vit", "--rate", "0.3", *data, "--out", "half", "-q")
    assert result.exit_code == 0, result.output
    report = read_report(here / "half")
    assert all(stage.scores for stage in report.stages)
    assert report.epochs[0].losses.keys() == {"cross_entropy", "teacher"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["swin", "segformer"])
def test_others_are_pruned_from_their_weights(here: Path, name: str) -> None:
    torch.save(made(name).state_dict(), f"{name}.pt")
    shape = ("--input", "3x32x32")
    result = compress("prune", f"{name}.pt", "--arch", f"nets.py:{name}", *shape, "--rate", "0.5", "--out", "half", "-q")
    assert result.exit_code == 0, result.output
    report = read_report(here / "half")
    assert abs(report.change.macs - 0.5) < 0.02 and report.verification.masked is not None
    (logits,) = tensors_in(compressor.load("half")(torch.randn(2, 3, 32, 32)))
    assert len(logits) == 2
    result = compress("export", "half", "--out", "again.onnx")
    assert result.exit_code == 0, result.output
