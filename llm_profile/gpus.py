"""Figures of GPUs, as their makers publish them: the roofs of rooflines, and what predictions know of a card.

Imports no torch. A card of no line here has no roof. Slices of a card (MIG) have none either.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class GpuFigures:
    """A card.

    architecture: as compilers name it (`sm_86`); cards of one architecture run the same kernels. flops_per_sec: of
    dense matrix products (no sparsity) by dtype, sums in float32; float32 without TF32, as torch computes it unless
    told otherwise. multiprocessors: streaming multiprocessors, or compute units. clock_hz: the boost clock.
    power_watts: of the board. source: where the maker says so.
    """

    architecture: str
    bandwidth_bytes_per_sec: float
    flops_per_sec: Mapping[str, float]
    multiprocessors: int
    l2_bytes: int
    clock_hz: float
    power_watts: float
    memory_bytes: float
    source: str


def rates_of(half: float, single: float, bfloat16: bool) -> dict[str, float]:
    """FLOP/s by dtype. half: in float16, and in bfloat16 where the card has it. single: in float32."""
    return {"float16": half, "float32": single} | ({"bfloat16": half} if bfloat16 else {})


def _gpu(architecture: str, *figures: float, source: str, bfloat16: bool = True) -> GpuFigures:
    gigabytes, half, single, multiprocessors, l2, megahertz, watts, memory = figures
    rates = rates_of(half * 1e12, single * 1e12, bfloat16)
    counts = int(multiprocessors), int(l2 * 2**20)
    return GpuFigures(architecture, gigabytes * 1e9, rates, *counts, megahertz * 1e6, watts, memory * 1e9, source)


H100_PAGE = (
    "NVIDIA H100 Tensor Core GPU datasheet, nvidia.com/en-us/data-center/h100 (half of the rate with sparsity), and "
    "NVIDIA H100 Tensor Core GPU Architecture whitepaper"
)
H200_PAGE = (
    "NVIDIA H200 Tensor Core GPU datasheet, nvidia.com/en-us/data-center/h200 (half of the rate with sparsity), and "
    "NVIDIA H100 Tensor Core GPU Architecture whitepaper"
)
GH200_PAGE = "NVIDIA GH200 Grace Hopper Superchip datasheet (half of the rate with sparsity)"
A100_PAGE = (
    "NVIDIA A100 Tensor Core GPU datasheet, nvidia.com/en-us/data-center/a100, and Architecture whitepaper, table 4"
)
V100_PAGE = "NVIDIA V100 Tensor Core GPU datasheet, nvidia.com/en-us/data-center/v100, and Architecture whitepaper"
GA102_PAPER = "NVIDIA Ampere GA102 GPU Architecture whitepaper, appendices"
ADA_PAPER = "NVIDIA Ada GPU Architecture whitepaper, appendices"
BLACKWELL_PAPER = "NVIDIA RTX Blackwell GPU Architecture whitepaper, appendices"
PRO_PAPER = "NVIDIA RTX PRO 6000 Blackwell Workstation Edition datasheet; RTX Blackwell PRO whitepaper, appendices"
ADA_PRO = "NVIDIA Ada GPU Architecture whitepaper, appendices; NVIDIA RTX 6000 Ada Generation datasheet"
B200_PAGE = "NVIDIA Blackwell datasheet: HGX B200, a card (half of the rate with sparsity)"

GPUS: dict[str, GpuFigures] = {
    # short name (cards.py) -> architecture, GB/s, TFLOP/s in half and in single precision, multiprocessors,
    # MiB of L2, MHz, W, GB of memory, source
    "H200": _gpu("sm_90", 4800, 989.5, 67, 132, 50, 1980, 700, 141, source=H200_PAGE),
    "H100": _gpu("sm_90", 3350, 989.5, 67, 132, 50, 1980, 700, 80, source=H100_PAGE),
    "H100NVL": _gpu("sm_90", 3900, 835.5, 60, 132, 50, 1785, 400, 94, source=H100_PAGE),
    "H100PCIe": _gpu("sm_90", 2000, 756.5, 51, 114, 50, 1755, 350, 80, source=H100_PAGE),
    "GH200": _gpu("sm_90", 4000, 989.5, 67, 132, 50, 1980, 700, 96, source=GH200_PAGE),
    "GH200-144GB": _gpu("sm_90", 4900, 989.5, 67, 132, 50, 1980, 700, 144, source=GH200_PAGE),
    "A100-40GB": _gpu("sm_80", 1555, 312, 19.5, 108, 40, 1410, 400, 40, source=A100_PAGE),
    "A100-80GB": _gpu("sm_80", 2039, 312, 19.5, 108, 40, 1410, 400, 80, source=A100_PAGE),
    "A100PCIe-40GB": _gpu("sm_80", 1555, 312, 19.5, 108, 40, 1410, 250, 40, source=A100_PAGE),
    "A100PCIe-80GB": _gpu("sm_80", 1935, 312, 19.5, 108, 40, 1410, 300, 80, source=A100_PAGE),
    "A30": _gpu("sm_80", 933, 165, 10.3, 56, 24, 1440, 165, 24, source="NVIDIA A30 Tensor Core GPU datasheet"),
    "A10": _gpu("sm_86", 600, 125, 31.2, 72, 6, 1695, 150, 24, source="NVIDIA A10 Tensor Core GPU datasheet"),
    "A40": _gpu("sm_86", 696, 149.7, 37.4, 84, 6, 1740, 300, 48, source="NVIDIA A40 datasheet; " + GA102_PAPER),
    "L4": _gpu(
        *("sm_89", 300, 121, 30.3, 58, 48, 2040, 72, 24),
        source="NVIDIA L4 Tensor Core GPU datasheet (half of the rate with sparsity)",
    ),
    "L40": _gpu("sm_89", 864, 181.05, 90.5, 142, 96, 2490, 300, 48, source="NVIDIA L40 datasheet; " + ADA_PAPER),
    "L40S": _gpu("sm_89", 864, 362.05, 91.6, 142, 96, 2520, 350, 48, source="NVIDIA L40S datasheet; " + ADA_PAPER),
    "V100-16GB": _gpu("sm_70", 900, 125, 15.7, 80, 6, 1530, 300, 16, source=V100_PAGE, bfloat16=False),
    "V100-32GB": _gpu("sm_70", 900, 125, 15.7, 80, 6, 1530, 300, 32, source=V100_PAGE, bfloat16=False),
    "V100PCIe-16GB": _gpu("sm_70", 900, 112, 14, 80, 6, 1380, 250, 16, source=V100_PAGE, bfloat16=False),
    "V100PCIe-32GB": _gpu("sm_70", 900, 112, 14, 80, 6, 1380, 250, 32, source=V100_PAGE, bfloat16=False),
    "T4": _gpu(
        *("sm_75", 320, 65, 8.1, 40, 4, 1590, 70, 16), source="NVIDIA T4 Tensor Core GPU datasheet", bfloat16=False
    ),
    "A6000": _gpu("sm_86", 768, 154.8, 38.7, 84, 6, 1800, 300, 48, source=GA102_PAPER),
    "RTX3090": _gpu("sm_86", 936, 71, 35.6, 82, 6, 1695, 350, 24, source=GA102_PAPER),
    "RTX4090": _gpu("sm_89", 1008, 165.2, 82.6, 128, 72, 2520, 450, 24, source=ADA_PAPER),
    "RTX6000Ada": _gpu("sm_89", 960, 364.2, 91.1, 142, 96, 2505, 300, 48, source=ADA_PRO),
    "RTX5090": _gpu("sm_120", 1792, 209.5, 104.8, 170, 96, 2407, 575, 32, source=BLACKWELL_PAPER),
    "RTXPRO6000": _gpu("sm_120", 1792, 503.8, 126, 188, 128, 2617, 600, 96, source=PRO_PAPER),
    "B200": _gpu("sm_100", 8000, 2250, 80, 148, 126, 1965, 1000, 180, source=B200_PAGE),
    "MI300X": _gpu(
        *("gfx942", 5300, 1307.4, 163.4, 304, 256, 2100, 750, 192),
        source="AMD Instinct MI300X Accelerator data sheet (of the caches, the last: Infinity Cache)",
    ),
    "MI325X": _gpu(
        *("gfx942", 6000, 1307.4, 163.4, 304, 256, 2100, 1000, 256),
        source="AMD Instinct MI325X Accelerator data sheet (of the caches, the last: Infinity Cache)",
    ),
}
"""Figures by short name."""
