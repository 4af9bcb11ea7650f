"""Images that are not RGB squares, of any number of channels and any size: the run ends, and its page shows them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import dfqkit
from dfqkit_export.images.spec import ImageSpec
from tests._toys import conv_bn, randomise

_ZEROQ = {"method": "zeroq", "batch": 16, "steps": 2}
_DFQ = {"method": "dfq", "generators": 1, "batch": 16, "width": 8, "latent": 16, "warmup": 1, "memory": 16}
_GENIE = {"method": "genie", "batch": 16, "steps": 1}


def teacher(channels: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        pool, flat = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        net = nn.Sequential(
            conv_bn(channels, 8), nn.ReLU(), conv_bn(8, 8, stride=2), nn.ReLU(), pool, flat, nn.Linear(8, 4)
        )
        return randomise(net)


@pytest.mark.parametrize(
    ("shape", "synthesis"),
    [
        ((13, 7, 7), _ZEROQ),
        pytest.param((2, 12, 40), _GENIE, marks=pytest.mark.slow),
        pytest.param((4, 15, 17), _DFQ, marks=pytest.mark.slow),
    ],
)
def test_the_run_ends(shape: tuple[int, int, int], synthesis: dict[str, object], tmp_path: Path) -> None:
    channels = shape[0]
    image = ImageSpec(shape=shape, mean=(0.4,) * channels, std=(0.2,) * channels, classes=4)
    options = {
        "synthesis": synthesis,
        "bank": {"calibration": 16, "held_out": 16, "grading": 16, "batch": 16},
        "validate": {"latency_repeats": 0},
        "quant": {"weight_range": "max", "activation_range": "percentile"},
    }
    result = dfqkit.quantize(teacher(channels), image=image, out=tmp_path / "out", options=options)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    told = {1: "", 2: "channel 1 of 2", 3: ""}.get(channels, f"channels 1, 2, 3 of {channels}")
    assert told in page
    assert result.report.metric("student_agreement", "onnxruntime") is not None
