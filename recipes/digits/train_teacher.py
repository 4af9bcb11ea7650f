"""Train the teacher of the digits recipes, and write it and its held-out test digits beside this script.

Data: the UCI handwritten digits that scikit-learn ships (`load_digits`; Alpaydin and Kaynak, 1998; 1,797 images of 8x8
pixels, values 0 to 16, CC BY 4.0), upscaled to 16x16 by bilinear interpolation and rounded to uint8. A stratified split
keeps 540 images for the test; the other 1,257 train the network, and nothing else in the project uses them.

Normalisation: mean 0.3 and std 0.32 in [0, 1] space, which are the upscaled images' own (0.305 and 0.319) rounded. A
recipe for this teacher must say: shape [1, 16, 16], mean [0.3], std [0.32], classes 10.

Run: `python recipes/digits/train_teacher.py` (needs scikit-learn; under a minute on one CPU thread). Writes
`teacher.safetensors` (weights) and `test.npz` (`images` uint8 (N, 16, 16), `labels` int64), prints the test accuracy.
With `--training-images FILE` it writes the 1,257 others to that .npz and ends, for `dfqkit record`.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from dfqkit.models import digits_cnn
from dfqkit_export.images.spec import ImageSpec

IMAGE = ImageSpec(shape=(1, 16, 16), mean=(0.3,), std=(0.32,), classes=10)
TEST_SHARE = 0.3
BATCH = 64
MAX_SHIFT = 2 / 16  # of the image's side
MAX_ANGLE = math.radians(10)
MAX_SCALE = 0.1


def load_images() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return all digits as images uint8 (N, 16, 16) and labels int64 (N,)."""
    digits = load_digits()
    small = torch.tensor(digits.images, dtype=torch.float32)[:, None] * (255 / 16)
    large = nn.functional.interpolate(small, size=IMAGE.shape[1:], mode="bilinear", align_corners=False)
    return large[:, 0].round().clamp(0, 255).to(torch.uint8).numpy(), digits.target.astype(np.int64)


def to_inputs(images: NDArray[np.uint8]) -> Tensor:
    """Convert images uint8 (N, 16, 16) to normalised float32 (N, 1, 16, 16)."""
    return IMAGE.normalize(torch.from_numpy(images)[:, None].float() / 255)


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Shift, rotate and scale every normalised image (N, 1, H, W) a little; what comes in is empty paper."""
    draw = torch.rand((len(x), 4), generator=generator) * 2 - 1
    angle, scale = draw[:, 0] * MAX_ANGLE, 1 + draw[:, 1] * MAX_SCALE
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    move = draw[:, 2:] * 2 * MAX_SHIFT  # affine_grid's coordinates run from -1 to 1
    matrix = torch.stack([cos, -sin, move[:, 0], sin, cos, move[:, 1]], dim=1).view(-1, 2, 3)
    grid = nn.functional.affine_grid(matrix, list(x.shape), align_corners=False)
    paper = IMAGE.bounds()[0]  # grid_sample fills with zero
    return nn.functional.grid_sample(x - paper, grid, align_corners=False) + paper


def train(x: Tensor, labels: Tensor, *, epochs: int, seed: int) -> nn.Module:
    """Train a digits network on normalised images (N, 1, 16, 16) and labels (N,); return it in eval mode."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = digits_cnn(IMAGE.classes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.05)
    batches = len(x) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=epochs * batches)
    for _ in range(epochs):
        order = torch.randperm(len(x), generator=generator)
        for batch in order[: batches * BATCH].view(batches, BATCH):
            logits = model(augment(x[batch], generator))
            loss: Tensor = nn.functional.cross_entropy(logits, labels[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    return model.eval()


def accuracy(model: nn.Module, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> float:
    """Return the share of images uint8 (N, 16, 16) that the model labels right, in [0, 1]."""
    with torch.no_grad():
        predicted = model(to_inputs(images)).argmax(1).numpy()
    return float((predicted == labels).mean())


def main() -> None:
    """Parse the command line, train, write both files, print the accuracy."""
    parser = argparse.ArgumentParser(description="Train the teacher of the digits recipes.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write to")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--training-images", type=Path, help=".npz to write the training images to, without training")
    arguments = parser.parse_args()

    images, labels = load_images()
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels, test_size=TEST_SHARE, stratify=labels, random_state=0
    )
    if arguments.training_images:
        np.savez_compressed(arguments.training_images, images=train_images, labels=train_labels)
        return
    model = train(to_inputs(train_images), torch.from_numpy(train_labels), epochs=arguments.epochs, seed=arguments.seed)

    arguments.out.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), arguments.out / "teacher.safetensors")
    np.savez_compressed(arguments.out / "test.npz", images=test_images, labels=test_labels)
    share = accuracy(model, test_images, test_labels)
    print(f"test accuracy {100 * share:.2f} % ({round(share * len(test_labels))} of {len(test_labels)} digits)")


if __name__ == "__main__":
    main()
