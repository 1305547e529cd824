"""Peak rates of GPUs, as their makers publish them: the roofs of rooflines. Imports no torch.

A card of no line here has no roof. Slices of a card (MIG) have none either.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Peaks:
    """What a card reaches at most.

    flops_per_sec: of dense matrix products (no sparsity) by dtype, sums in float32; float32 without TF32, as torch
    computes it unless told otherwise. source: where the maker says so.
    """

    bandwidth_bytes_per_sec: float
    flops_per_sec: Mapping[str, float]
    source: str


def _peaks(gigabytes: float, half: float, single: float, source: str, bfloat16: bool = True) -> Peaks:
    """gigabytes: a second. half: TFLOP/s in float16, and in bfloat16 where the card has it. single: in float32."""
    rates = {"float16": half * 1e12, "float32": single * 1e12} | ({"bfloat16": half * 1e12} if bfloat16 else {})
    return Peaks(gigabytes * 1e9, rates, source)


H100_PAGE = "NVIDIA H100 Tensor Core GPU datasheet, nvidia.com/en-us/data-center/h100 (half of the rate with sparsity)"
H200_PAGE = "NVIDIA H200 Tensor Core GPU datasheet, nvidia.com/en-us/data-center/h200 (half of the rate with sparsity)"
GH200_PAGE = "NVIDIA GH200 Grace Hopper Superchip datasheet (half of the rate with sparsity)"
A100_PAGE = "NVIDIA A100 Tensor Core GPU datasheet, nvidia.com/en-us/data-center/a100"
V100_PAGE = "NVIDIA V100 Tensor Core GPU datasheet, nvidia.com/en-us/data-center/v100"
GA102_PAPER = "NVIDIA Ampere GA102 GPU Architecture whitepaper, appendices"
ADA_PAPER = "NVIDIA Ada GPU Architecture whitepaper, appendices"
BLACKWELL_PAPER = "NVIDIA RTX Blackwell GPU Architecture whitepaper, appendices"

GPUS: dict[str, Peaks] = {
    # short name (cards.py) -> GB/s, TFLOP/s in half and in single precision, source
    "H200": _peaks(4800, 989.5, 67, H200_PAGE),
    "H100": _peaks(3350, 989.5, 67, H100_PAGE),
    "H100NVL": _peaks(3900, 835.5, 60, H100_PAGE),
    "H100PCIe": _peaks(2000, 756.5, 51, H100_PAGE),
    "GH200": _peaks(4000, 989.5, 67, GH200_PAGE),
    "GH200-144GB": _peaks(4900, 989.5, 67, GH200_PAGE),
    "A100-40GB": _peaks(1555, 312, 19.5, A100_PAGE),
    "A100-80GB": _peaks(2039, 312, 19.5, A100_PAGE),
    "A100PCIe-40GB": _peaks(1555, 312, 19.5, A100_PAGE),
    "A100PCIe-80GB": _peaks(1935, 312, 19.5, A100_PAGE),
    "A30": _peaks(933, 165, 10.3, "NVIDIA A30 Tensor Core GPU datasheet"),
    "A10": _peaks(600, 125, 31.2, "NVIDIA A10 Tensor Core GPU datasheet"),
    "A40": _peaks(696, 149.7, 37.4, "NVIDIA A40 datasheet"),
    "L4": _peaks(300, 121, 30.3, "NVIDIA L4 Tensor Core GPU datasheet (half of the rate with sparsity)"),
    "L40": _peaks(864, 181.05, 90.5, "NVIDIA L40 datasheet"),
    "L40S": _peaks(864, 362.05, 91.6, "NVIDIA L40S datasheet"),
    "V100-16GB": _peaks(900, 125, 15.7, V100_PAGE, bfloat16=False),
    "V100-32GB": _peaks(900, 125, 15.7, V100_PAGE, bfloat16=False),
    "V100PCIe-16GB": _peaks(900, 112, 14, V100_PAGE, bfloat16=False),
    "V100PCIe-32GB": _peaks(900, 112, 14, V100_PAGE, bfloat16=False),
    "T4": _peaks(320, 65, 8.1, "NVIDIA T4 Tensor Core GPU datasheet", bfloat16=False),
    "A6000": _peaks(768, 154.8, 38.7, GA102_PAPER),
    "RTX3090": _peaks(936, 71, 35.6, GA102_PAPER),
    "RTX4090": _peaks(1008, 165.2, 82.6, ADA_PAPER),
    "RTX5090": _peaks(1792, 209.5, 104.8, BLACKWELL_PAPER),
    "MI300X": _peaks(5300, 1307.4, 163.4, "AMD Instinct MI300X Accelerator data sheet"),
    "MI325X": _peaks(6000, 1307.4, 163.4, "AMD Instinct MI325X Accelerator data sheet"),
}
"""Peaks by short name."""
