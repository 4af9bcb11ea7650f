"""The benchmark of 224-pixel networks: its rows, and weights with one scale for a layer."""

from __future__ import annotations

import torch
from brevitas.nn.quant_layer import QuantWeightBiasInputOutputLayer as Layer

from dfqkit.config.quant import QuantConfig
from dfqkit.students.placement import quantized_graph
from dfqkit_export.backends import get_target
from tests._toys import IMAGE, images, toy_graph
from tests.benchmarks.real_size import NETS, one_scale_for_all, table


def test_a_row_says_what_was_lost_with_its_error_and_what_it_took() -> None:
    row = {
        "network": "fdmobilenet", "bits": "w4a8", "set": ["quant.eight_bit_share=0.1"], "per_tensor": False,
        "float": 71.23, "top1": 69.0, "drop": 2.23, "error": 0.81, "agreement": 84.6, "minutes": 9.04,
        "processor_minutes": 4.51, "gigabytes": 2.04, "bytes": 1234567, "chosen": "as they are", "tried": [],
    }  # fmt: skip
    header, _, told = table([row]).splitlines()
    assert header.count("|") == told.count("|")
    assert "| 69.00 (float 71.23) | 2.23 ± 0.81 | 84.6 | 9.0 (4.5) | 2.0 | 1.23 | as they are |" in told
    assert "quant.eight_bit_share=0.1" in told
    assert len(NETS) == 3


def test_one_scale_serves_all_weights_of_a_layer_where_that_is_asked_for() -> None:
    target = get_target("onnxruntime")
    before = target.weights
    try:
        one_scale_for_all()
        student = quantized_graph(toy_graph("residual"), QuantConfig(), target, IMAGE)
    finally:
        object.__setattr__(target, "weights", before)
    with torch.no_grad():
        student(images(2))
        layers = [module for module in student.modules() if isinstance(module, Layer)]
        assert {layer.quant_weight().scale.numel() for layer in layers} == {1}
