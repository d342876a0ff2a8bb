"""How many prompts to decode at once, from sizes; the guess is corrected when memory runs out.

Legend: d width, q and kv widths of queries and of keys, f width of the MLP, e bytes per element.
"""

from __future__ import annotations

from pathlib import Path

import torch

from coordvlm.analysis.cost import Architecture, device_memory
from coordvlm.contracts import Encoded
from coordvlm.models.backbone import Backbone

#: Share of the free memory that a first guess may fill; the estimate leaves out kernels' workspaces and fragmentation.
FILL = 0.6
#: More rows than this gain nothing: a step of the decode loop is then bound by arithmetic.
MOST = {"cuda": 64, "cpu": 32, "mps": 16}
#: Prompt tokens in a batch per CPU thread; more only make the first results come later.
TOKENS_PER_THREAD = 2048


def decode_batch_size(backbone: Backbone, sample: Encoded, *, max_new_tokens: int, device: torch.device) -> int:
    """Prompts like ``sample`` to decode at once, at least 1."""
    most = MOST.get(device.type, 16)
    if device.type == "cpu":
        most = min(most, max(1, torch.get_num_threads() * TOKENS_PER_THREAD // len(sample.prompt_ids)))
    free = free_memory(device)
    if free is None:
        return min(most, 8)
    return max(1, min(most, int(FILL * free / row_bytes(backbone, sample, max_new_tokens))))


def row_bytes(backbone: Backbone, sample: Encoded, max_new_tokens: int) -> float:
    """Bytes that one row adds while it is decoded: cached keys and values, twice while rows are compacted; one language layer or vision
    block of the prompt; and the head's columns with what is computed of them, once."""
    arch = Architecture.of(backbone.hf.config)
    e = backbone.table.weight.element_size()
    prompt, patches = len(sample.prompt_ids), len(sample.pixels)
    cache = 2 * arch.layers * 2 * arch.kv * e * (prompt + max_new_tokens)
    layer = prompt * (6 * arch.d + 2 * arch.q + 2 * arch.kv + 3 * arch.f) * max(e, 4)
    block = patches * (8 * arch.vision_d + 3 * arch.vision_f) * max(e, 4)
    return cache + max(layer, block) + sample.pixels.nbytes * 12 + 12 * 4 * backbone.num_columns


def free_memory(device: torch.device) -> float | None:
    """Bytes that can still be taken on a device; None where it cannot be told."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by the allocator, for us
        return float(torch.cuda.mem_get_info(device)[0] + kept)
    total = device_memory(device)
    if total is None:
        return None
    found = [total, _table(Path("/proc/meminfo")).get("MemAvailable:", total / 1024) * 1024]
    group = Path("/sys/fs/cgroup")
    try:
        stat = _table(group / "memory.stat")
        cached = stat.get("active_file", 0.0) + stat.get("inactive_file", 0.0)  # given back when memory is asked for
        found.append(total - float((group / "memory.current").read_text()) + cached)
    except (OSError, ValueError):
        pass  # no container, or one of another kind
    return max(0.0, min(found))


def _table(file: Path) -> dict[str, float]:
    """Lines of ``name number`` of a file of the kernel; nothing where it does not exist."""
    try:
        rows = [line.split() for line in file.read_text().splitlines()]
    except OSError:
        return {}
    return {row[0]: float(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a smaller batch may succeed where this one failed."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text or "not enough memory" in text)
