"""A U-Net, pruned with the labels of its owner: a function that returns (image, mask) pairs is all that is needed."""

import torch
import unet

import compressor


def data() -> tuple[list[tuple[torch.Tensor, torch.Tensor]], list[tuple[torch.Tensor, torch.Tensor]]]:
    """Training and test pairs: a float image [3, 32, 32], and its mask [32, 32] of class numbers. Here, bright squares."""
    masks = [torch.zeros(32, 32, dtype=torch.int64).index_fill(0, torch.arange(n, n + 12), 1) for n in range(20)]
    pairs = [(0.2 * torch.rand(3, 32, 32) + 0.6 * mask, mask) for mask in masks]
    return pairs[:14], pairs[14:]


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.save(unet.UNet(classes=2).state_dict(), "unet.pt")  # yours is trained
    report = compressor.prune("unet.pt", arch=f"{unet.__file__}:UNet", rate=0.5, data=f"{__file__}:data", out="half")
    print(report.verdict)
