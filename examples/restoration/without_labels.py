"""A denoiser, pruned without labels: images of the kind that it is for are enough to repair it and to train it.

python without_labels.py IMAGES
"""

import sys

import dncnn
import torch

import compressor

if __name__ == "__main__":
    torch.manual_seed(0)
    torch.save(dncnn.DnCNN(channels=3, depth=5, width=24).state_dict(), "denoiser.pt")  # yours is trained
    report = compressor.prune(
        "denoiser.pt", arch=f"{dncnn.__file__}:DnCNN", rate=0.5, arch_args={"channels": 3, "depth": 5, "width": 24},
        data=f"images:{sys.argv[1]}", out="half",
    )  # fmt: skip
    print(report.verdict)
