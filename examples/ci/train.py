"""Writes model.pt in seconds: the network of net.py, trained on scikit-learn's digits.

It takes the place of your own checkpoint.
"""

import torch
import torch.nn.functional as F
from net import Net

import compressor

EPOCHS, LR = 5, 0.1


def main() -> None:
    torch.manual_seed(0)
    data, network = compressor.open_data("digits"), Net()
    optimizer = torch.optim.SGD(network.parameters(), lr=LR, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=EPOCHS - 1)
    for epoch in range(EPOCHS):
        for batch in data.batches("train", batch_size=64, device="cpu", epoch=epoch, augment=False):
            optimizer.zero_grad()
            F.cross_entropy(network(batch.inputs), batch.targets).backward()
            optimizer.step()
        schedule.step()
    torch.save(network.state_dict(), "model.pt")


if __name__ == "__main__":
    main()
