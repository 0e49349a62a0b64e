"""Train a network from scratch on small images, as an example to compress. Writes a state dict.

    python examples/cifar/train.py examples/cifar/vgg.py:vgg8 --data imagefolder:cifar10 --epochs 20 --out vgg8.pt

Random crops and flips, a cosine schedule from --lr with 10 % of the epochs as warm-up. The last epoch is kept.
Prints one line of JSON with the command, the top-1 accuracy on all test images and the seconds.
"""

import argparse
import json
import shlex
import sys
import time
from pathlib import Path

import torch

from compressor.channels import analyse
from compressor.checkpoint import build
from compressor.data import open_data
from compressor.network.outputs import torch_predict
from compressor.runs.journal import Journal
from compressor.tasks.classify import Classify
from compressor.training.goal import parse_rate
from compressor.training.method import Job, Method
from compressor.training.recipe import Recipe
from compressor.training.train import Training, seed_all


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arch")
    parser.add_argument("--data", required=True)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--optimizer", choices=("sgd", "adamw"), default="sgd")
    parser.add_argument("--lr", type=float)
    parser.add_argument("--amp", default="auto")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    began = time.perf_counter()
    seed_all(args.seed)
    data, device, model = open_data(args.data, seed=args.seed), torch.device(args.device), build(args.arch, {})
    sgd = args.optimizer == "sgd"
    recipe = Recipe(
        epochs=args.epochs,
        optimizer=args.optimizer,
        lr=args.lr or (0.1 if sgd else 1e-3),
        weight_decay=5e-4 if sgd else None,
        warmup=args.epochs / 10,
        amp=args.amp,
        channels_last=True,
        seed=args.seed,
    )
    job = Job(model, data.shape, analyse(model, data.shape), parse_rate(0.5), Classify())
    method = Method(job).to(device)
    for row in Training(method, data, recipe, device).run(Journal()):
        held_out = f"{row.held_out.value:.4f}" if row.held_out else "-"
        print(row.epoch, held_out, f"{row.seconds:.0f} s", file=sys.stderr, flush=True)
    network = method.model.to(memory_format=torch.contiguous_format).cpu().eval()
    torch.save(network.state_dict(), args.out)
    reached = Classify().measure(torch_predict(network, device), data.batches("test", batch_size=250, device=device))
    print(
        json.dumps(
            {
                "command": shlex.join(["python", *sys.argv]),
                "top1": reached.headline(),
                "n": reached.n,
                "seconds": round(time.perf_counter() - began),
            }
        )
    )


if __name__ == "__main__":
    main()
