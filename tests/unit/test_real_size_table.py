"""The benchmark of 224-pixel networks: its rows."""

from __future__ import annotations

from tests.benchmarks.real_size import NETS, table


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
