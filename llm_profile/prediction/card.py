"""What the base of a prediction knows of a card: its published figures, and how near its kernels come to them.

Imports no torch.
"""

from dataclasses import dataclass

from llm_profile.errors import UsageError
from llm_profile.gpus import GpuFigures


@dataclass(frozen=True)
class KernelShares:
    """How near kernels come to the published figures of cards of an architecture; shares are of 1.

    generation: cards of one run the same kernels. bandwidth: of the memory bandwidth, by products of one row and
    a large matrix. products: of the rate, by the largest products. mma: rate of the instructions that attention of
    PyTorch uses, over the rate. l2_bytes: read from L2 by a multiprocessor in a clock.
    separate_experts: whether experts are products one after another. measured: whether the figures were fitted to
    tables of this repository, or are assumed.
    """

    generation: str
    bandwidth: float
    products: float
    mma: float
    l2_bytes: float
    separate_experts: bool
    measured: bool = False


KERNEL_SHARES: dict[str, KernelShares] = {
    "sm_70": KernelShares("Volta", 0.85, 0.80, 1.0, 18, True),
    "sm_75": KernelShares("Turing", 0.85, 0.80, 1.0, 14, True),
    "sm_80": KernelShares("Ampere", 0.90, 0.85, 1.0, 21, True),
    "sm_86": KernelShares("Ampere", 0.93, 0.90, 1.0, 14, True),
    "sm_89": KernelShares("Ada", 0.92, 0.88, 1.0, 15, True),
    "sm_90": KernelShares("Hopper", 0.92, 0.83, 0.62, 21, False, measured=True),
    "sm_100": KernelShares("Blackwell", 0.90, 0.80, 0.5, 21, False),
    "sm_120": KernelShares("Blackwell RTX", 0.92, 0.88, 1.0, 15, True),
    "gfx942": KernelShares("CDNA 3", 0.80, 0.60, 0.6, 16, True),
}
"""Those of Hopper are fitted to this repository's tables. The others are assumptions: no table of such a card is here.

Why they differ. Tensor cores of Hopper need asynchronous products (wgmma) for their rate; attention of PyTorch uses the
older instruction (mma.sync), which reaches 0.62 of it. Those of Ampere and Ada have that instruction alone, so both
reach the rate. The rate of GeForce cards with sums in float32 is half of what their cores can do with sums in float16,
so memory and caches feed it easily, and large products come nearer to it. torch multiplies experts in one grouped
kernel from Hopper on, and one after another before.
"""


@dataclass(frozen=True)
class Card:
    """A card as the base sees it. flops_per_sec: in the dtype of the table. All figures are published ones."""

    architecture: str
    bandwidth_bytes_per_sec: float
    flops_per_sec: float
    multiprocessors: int
    l2_bytes: int
    clock_hz: float

    @classmethod
    def of(cls, gpu: GpuFigures, dtype: str) -> "Card":
        """Raises UsageError for a dtype that the card has no rate for, and an architecture that nothing is known of."""
        if gpu.architecture not in KERNEL_SHARES:
            raise UsageError(
                f"architecture {gpu.architecture}: not known here; choose one of {', '.join(KERNEL_SHARES)}"
            )
        if dtype not in gpu.flops_per_sec:
            raise UsageError(f"--dtype {dtype}: the card has no rate for it; it has {', '.join(gpu.flops_per_sec)}")
        rates = (gpu.bandwidth_bytes_per_sec, gpu.flops_per_sec[dtype])
        return cls(gpu.architecture, *rates, gpu.multiprocessors, gpu.l2_bytes, gpu.clock_hz)

    @property
    def shares(self) -> KernelShares:
        """How near its kernels come to the figures."""
        return KERNEL_SHARES[self.architecture]

    @property
    def l2_bytes_per_sec(self) -> float:
        """Of reads that hit L2; never less than the memory behind it gives."""
        return max(self.bandwidth_bytes_per_sec, self.shares.l2_bytes * self.multiprocessors * self.clock_hz)

    @property
    def launch_ns(self) -> float:
        """What the smallest kernel takes."""
        return LAUNCH_CLOCKS / self.clock_hz * 1e9


LAUNCH_CLOCKS = 2700
"""Clocks of a kernel that does next to nothing: 1.36 us at 1.98 GHz, as `mlp_other` of one token on an H200."""
