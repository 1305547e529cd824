"""Short names of GPUs, from the names that drivers report (nvidia-smi, torch.cuda.get_device_name)."""

from pathlib import Path

import pytest

from llm_profile.cards import CARDS, short_device_name
from llm_profile.store.paths import TablePaths

PRODUCTS: dict[str, str] = {
    "Tesla P100-PCIE-16GB": "P100",
    "Tesla V100-SXM2-16GB": "V100-16GB",
    "Tesla V100-SXM2-32GB": "V100-32GB",
    "Tesla V100-PCIE-32GB": "V100PCIe-32GB",
    "Tesla T4": "T4",
    "Quadro RTX 8000": "RTX8000",
    "Quadro RTX 6000": "RTX6000",
    "NVIDIA TITAN RTX": "TITANRTX",
    "NVIDIA TITAN X (Pascal)": "TITANXPascal",
    "GeForce GTX 1060 6GB": "GTX1060-6GB",
    "NVIDIA GeForce GTX 1060 3GB": "GTX1060-3GB",
    "NVIDIA GeForce RTX 2080 Ti": "RTX2080Ti",
    "GeForce RTX 3090": "RTX3090",
    "NVIDIA GeForce RTX 3090": "RTX3090",
    "NVIDIA GeForce RTX 3090 Ti": "RTX3090Ti",
    "NVIDIA GeForce RTX 4060 Laptop GPU": "RTX4060Laptop",
    "NVIDIA GeForce RTX 4080": "RTX4080",
    "NVIDIA GeForce RTX 4080 SUPER": "RTX4080SUPER",
    "NVIDIA GeForce RTX 4090": "RTX4090",
    "NVIDIA GeForce RTX 4090 D": "RTX4090D",
    "NVIDIA GeForce RTX 4090 Laptop GPU": "RTX4090Laptop",
    "NVIDIA GeForce RTX 5090": "RTX5090",
    "NVIDIA RTX A5000": "A5000",
    "NVIDIA RTX A6000": "A6000",
    "RTX A6000": "A6000",
    "NVIDIA RTX A4000 Laptop GPU": "A4000Laptop",
    "NVIDIA RTX 4000 SFF Ada Generation": "RTX4000SFFAda",
    "NVIDIA RTX 5000 Ada Generation": "RTX5000Ada",
    "NVIDIA RTX 6000 Ada Generation": "RTX6000Ada",
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": "RTXPRO6000",
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": "RTXPRO6000Server",
    "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition": "RTXPRO6000MaxQ",
    "NVIDIA A10": "A10",
    "NVIDIA A10G": "A10G",
    "NVIDIA A30": "A30",
    "NVIDIA A40": "A40",
    "A100-SXM4-40GB": "A100-40GB",
    "NVIDIA A100-SXM4-40GB": "A100-40GB",
    "NVIDIA A100-SXM4-80GB": "A100-80GB",
    "NVIDIA A100-PCIE-40GB": "A100PCIe-40GB",
    "NVIDIA A100 80GB PCIe": "A100PCIe-80GB",
    "NVIDIA A100-SXM4-40GB MIG 1g.5gb": "A100-40GB-MIG-1g.5gb",
    "NVIDIA A800-SXM4-80GB": "A800-80GB",
    "NVIDIA L4": "L4",
    "NVIDIA L40": "L40",
    "NVIDIA L40S": "L40S",
    "NVIDIA H100 80GB HBM3": "H100",
    "NVIDIA H100 80GB HBM3 MIG 1g.10gb+me": "H100-MIG-1g.10gb+me",
    "NVIDIA H100 PCIe": "H100PCIe",
    "NVIDIA H100 NVL": "H100NVL",
    "NVIDIA H800": "H800",
    "NVIDIA H800 PCIe": "H800PCIe",
    "NVIDIA H20": "H20",
    "NVIDIA H200": "H200",
    "NVIDIA H200 NVL": "H200NVL",
    "NVIDIA GH200 480GB": "GH200",
    "NVIDIA GH200 144G HBM3e": "GH200-144GB",
    "NVIDIA B200": "B200",
    "NVIDIA B300 SXM6 AC": "B300",
    "NVIDIA GB200": "GB200",
    "NVIDIA GB300": "GB300",
    "NVIDIA GB10": "GB10",
    "AMD Instinct MI250X": "MI250X",
    "AMD Instinct MI250X / MI250": "MI250X",
    "AMD Instinct MI300X": "MI300X",
    "AMD Instinct MI325X": "MI325X",
    "AMD Radeon RX 7900 XTX": "RX7900XTX",
}


@pytest.mark.parametrize(("product", "short"), PRODUCTS.items())
def test_a_card_goes_by_what_people_call_it(product: str, short: str) -> None:
    assert short_device_name(product) == short


SAME_CARD = {"GeForce RTX 3090", "RTX A6000", "A100-SXM4-40GB", "AMD Instinct MI250X / MI250"}
"""Names that older drivers give to GPUs that PRODUCTS also has under a newer name."""


def test_cards_of_different_speed_have_different_names() -> None:
    shorts = [short for product, short in PRODUCTS.items() if product not in SAME_CARD]
    assert len(set(shorts)) == len(shorts)


@pytest.mark.parametrize("product", ["", "NVIDIA", "AMD Radeon Graphics"])
def test_a_name_that_says_nothing_is_gpu(product: str) -> None:
    assert short_device_name(product) == "GPU"


@pytest.mark.parametrize("product", [*PRODUCTS, *CARDS, "Orin (nvgpu)", "A/B \\ C:D", "Ünicode\n9000", "x MIG ../1g"])
def test_a_short_name_can_name_a_folder(product: str) -> None:
    short = short_device_name(product)
    assert "/" not in short and " " not in short
    assert TablePaths.of(Path("out"), short, "model").csv == Path("out", short, "model.csv")
