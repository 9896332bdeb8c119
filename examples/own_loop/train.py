"""ADMM in a training loop of your own: `python examples/own_loop/train.py` (digits, under a minute on one core).

Train, attach ADMM, train on as before, finish, retrain with the zeros held, export. <-- marks what prunefront adds.
"""

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from admm import AdmmSettings, PruningPlan, attach, hold_zeros
from evaluators import export_onnx

PLAN = PruningPlan({"0": {"filter": 0.5}, "3": {"filter": 0.5, "shape": 0.5}, "8": {"unstructured": 0.8}})


def network() -> nn.Sequential:
    """[batch, 1, 8, 8] -> [batch, 10]."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64 * 16, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def train_epoch(model: nn.Module, optimizer: torch.optim.Optimizer, data: DataLoader) -> float:
    model.train()
    losses = []
    for x, y in data:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


def main(epochs: int, out: Path) -> None:
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    images = (images / 8.0 - 1.0).astype("float32").reshape(-1, 1, 8, 8)
    x, x_test, y, y_test = map(torch.from_numpy, train_test_split(images, labels, test_size=0.25, random_state=0))
    data = DataLoader(TensorDataset(x, y), batch_size=64, shuffle=True)

    def report(name: str, model: nn.Module) -> None:
        with torch.no_grad():
            accuracy = (model.eval()(x_test).argmax(1) == y_test).float().mean()
        weights = sum(int(p.count_nonzero()) for p in model.parameters() if p.ndim > 1)
        print(f"{name:9} accuracy {accuracy:.3f}, {weights} weights")

    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    for _ in range(epochs):
        train_epoch(model, optimizer, data)
    report("dense", model)

    admm = attach(model, optimizer, PLAN, example_input=x[:1], settings=AdmmSettings(iterations=epochs))  # <--
    for _ in range(admm.epochs):
        admm.end_epoch(train_epoch(model, optimizer, data))  # <--
    small = admm.finish(data)  # <--
    print("".join(f"{note}\n" for note in small.notes), end="")
    report("pruned", small.model)

    optimizer = torch.optim.SGD(small.model.parameters(), lr=0.01, momentum=0.9)
    hold_zeros(small.model, optimizer, small.zeros)  # <--
    for _ in range(epochs):
        train_epoch(small.model, optimizer, data)
    report("retrained", small.model)
    print("written to", export_onnx(small.model, x[:1], out))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=8, help="of each phase: dense, ADMM, retraining")
    parser.add_argument("--out", type=Path, default=Path("digits.onnx"), help="where the ONNX file goes")
    main(**vars(parser.parse_args()))
