"""Short names of GPUs, used as the folder and the `hardware` column of their tables. Imports no torch.

GPUs that differ in speed get different names. A rule shortens the name that the driver reports; CARDS lists the GPUs
whose usual name the rule does not give.
"""

import re

CARDS: dict[str, str] = {
    # beginning of the driver's name, without the words of DECORATION -> the usual name of that GPU
    "P100-PCIE-16GB": "P100",
    "P100-PCIE-12GB": "P100-12GB",
    "P100-SXM2-16GB": "P100SXM2",
    "V100-SXM2-16GB": "V100-16GB",
    "V100-SXM2-32GB": "V100-32GB",
    "V100-SXM3-32GB": "V100SXM3-32GB",
    "V100-PCIE-16GB": "V100PCIe-16GB",
    "V100-PCIE-32GB": "V100PCIe-32GB",
    "A100-SXM4-40GB": "A100-40GB",
    "A100-SXM4-80GB": "A100-80GB",
    "A100-SXM-64GB": "A100-64GB",
    "A100-SXM-80GB": "A100-80GB",
    "A100-PCIE-40GB": "A100PCIe-40GB",
    "A100 80GB PCIe": "A100PCIe-80GB",
    "A800-SXM4-40GB": "A800-40GB",
    "A800-SXM4-80GB": "A800-80GB",
    "A800 80GB PCIe": "A800PCIe-80GB",
    "H100 80GB HBM3": "H100",
    "H100 80GB HBM2e": "H100PCIe",
    "H20-3e": "H20-141GB",
    "GH200 480GB": "GH200",  # 480 GB is the memory of its CPU; its GPU has 96 GB
    "GH200 120GB": "GH200",
    "GH200 144G HBM3e": "GH200-144GB",
    "B300 SXM6 AC": "B300",
    "RTX A2000": "A2000",
    "RTX A4000": "A4000",
    "RTX A4500": "A4500",
    "RTX A5000": "A5000",
    "RTX A5500": "A5500",
    "RTX A6000": "A6000",
    "RTX PRO 6000 Blackwell Workstation": "RTXPRO6000",
    "RTX PRO 6000 Blackwell Server": "RTXPRO6000Server",
    "RTX PRO 6000 Blackwell Max-Q Workstation": "RTXPRO6000MaxQ",
    "RTX PRO 5000 Blackwell": "RTXPRO5000",
    "RTX PRO 4500 Blackwell": "RTXPRO4500",
    "RTX PRO 4000 Blackwell": "RTXPRO4000",
    "MI250X / MI250": "MI250X",
    "MI300X OAM": "MI300X",
}

DECORATION = frozenset(
    {"NVIDIA", "AMD", "GeForce", "Quadro", "Tesla", "Instinct", "Radeon", "Generation", "Edition", "Graphics", "GPU"}
)
"""Words of the driver's name that are left out, because they do not tell GPUs of different speed apart."""

MEMORY_SIZE = re.compile(r"\d+GB?")
MEMORY_TYPE = re.compile(r"HBM\w*")
SLICE = "MIG"
"""NVIDIA multi-instance GPU: the word before the size of a slice, `1g.5gb`; slices of other sizes differ in speed."""

UNSAFE = re.compile(r"[^A-Za-z0-9.+_-]+")
"""Characters that are removed, because the short name is used as the name of a folder."""


def short_device_name(name: str) -> str:
    """`NVIDIA GeForce RTX 3090` -> `RTX3090`, `NVIDIA H100 80GB HBM3` -> `H100`, `NVIDIA H100 PCIe` -> `H100PCIe`.

    GPUs that are not in CARDS: the words are joined. A memory size is kept behind a hyphen, because some GPUs of one
    name have different chips for different sizes (`GeForce GTX 1060 6GB` -> `GTX1060-6GB`); a memory type is left out.
    A slice of a GPU (MIG) is named after the GPU and the size of the slice.
    """
    card, _, part = name.partition(f" {SLICE} ")
    words = [word for word in card.split() if word not in DECORATION]
    short = UNSAFE.sub("", _short(words)) or "GPU"
    return f"{short}-{SLICE}-{UNSAFE.sub('-', part.strip())}" if part else short


def _short(words: list[str]) -> str:
    for known in range(len(words), 0, -1):
        if (called := CARDS.get(" ".join(words[:known]))) is not None:
            return called + _joined(words[known:])
    return _joined(words)


def _joined(words: list[str]) -> str:
    return "".join(f"-{w}" if MEMORY_SIZE.fullmatch(w) else w for w in words if not MEMORY_TYPE.fullmatch(w))
