"""Tiny models loaded by transformers itself on two processes with their own tensor parallel plans, on a CPU.

`python3 -m tests.tensor_parallel_ranks FOLDER RANK TYPE...` is one of the processes. The first rank writes to
`FOLDER/real.pt` what it holds and computes of each type.
"""

import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.distributed import DistributedConfig
from transformers.utils import logging as transformers_logging

from llm_profile.models.blocks import Kept, blocks_of_each_kind, keep_blocks, keep_entries, kept_of_depth
from llm_profile.models.building import built_with_few_blocks, make_config, meta_model
from tests.test_random_configs import tiny_fields

RANKS = 2
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_grouped_mm")
TOKENS = torch.arange(5)[None]


class Products(TorchDispatchMode):
    """Collects the shapes of matrix products and of attention. A bias that is added in the product is left out."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        if name in PRODUCTS or "scaled_dot_product" in name:
            tensors = [value for value in args if isinstance(value, torch.Tensor)]
            if not any(isinstance(value, distributed.tensor.DTensor) for value in tensors):
                tensors = tensors[1:] if name in ("aten::addmm", "aten::baddbmm") else tensors
                kind = name.removeprefix("aten::").replace("addmm", "mm").replace("baddbmm", "bmm")
                self.seen.append(f"{kind} {[list(value.shape) for value in tensors]}")
        return func(*args, **(kwargs or {}))


def products_of(model: nn.Module) -> list[str]:
    """What a pass of TOKENS multiplies, in any order."""
    for parameter in model.parameters():
        parameter.requires_grad_()  # products fold dimensions otherwise, as they do without
    with torch.no_grad(), Products() as products:
        model(input_ids=TOKENS, use_cache=True)
    return sorted(products.seen)


def loaded(model_type: str, distributed_config: Any = None) -> tuple[nn.Module, Kept]:
    """A tiny model of one block of each kind with weights of a fixed seed, loaded by `from_pretrained`."""
    config = make_config(tiny_fields(model_type))
    full, shell = meta_model(config), meta_model(config)
    kept = blocks_of_each_kind(full, 1)
    keep_blocks(shell, kept)
    generator = torch.Generator().manual_seed(0)
    state = {name: 0.02 * torch.randn(value.shape, generator=generator) for name, value in shell.state_dict().items()}
    arguments = {} if distributed_config is None else {"distributed_config": distributed_config}
    model_class: Any = type(full)
    with built_with_few_blocks(model_class, kept):
        model = model_class.from_pretrained(None, config=config, state_dict=state, dtype=torch.float32, **arguments)
    keep_entries(model, kept_of_depth(full, kept))
    return model.eval(), kept


def real_rank(model_type: str) -> dict[str, Any]:
    """What this rank of a real load holds and computes: parameters by name, products, or the error."""
    found: dict[str, Any] = {}
    try:
        model, _ = loaded(model_type, DistributedConfig(tp_plan="auto", tp_size=RANKS))
        named = model.named_parameters(remove_duplicate=False)
        found["parameters"] = {name: _local(value).detach().clone() for name, value in named}
        found["products"] = products_of(model)
    except Exception:  # a type that transformers cannot load so is told apart by its error
        found["error"] = traceback.format_exc(limit=-1)
    return found


def _local(value: Any) -> torch.Tensor:
    return value.to_local() if hasattr(value, "to_local") else value


def main(folder: Path, rank: int, types: list[str]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS)}
    logging.disable()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    real = {model_type: real_rank(model_type) for model_type in types}
    if rank == 0:
        torch.save(real, folder / "real.pt")
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
