"""Against ``get_rope_index`` of the three families, on whole ragged batches."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel, Qwen2VLConfig, Qwen2VLModel, Qwen3VLConfig, Qwen3VLModel

from tests.tiny import MERGE, tiny

SIDES = ((48, 32), (32, 32), (32, 64), (16, 96))
FAMILIES = {"qwen2": (Qwen2VLConfig, Qwen2VLModel), "qwen2.5": (Qwen2_5_VLConfig, Qwen2_5_VLModel), "qwen3": (Qwen3VLConfig, Qwen3VLModel)}


@pytest.mark.parametrize("family", FAMILIES)
def test_positions_equal_the_library_of_every_family(family: str) -> None:
    config_class, model_class = FAMILIES[family]
    t = tiny()
    batch = t.batch(seed=1, counts=(2, 0, 5, 1), sides=SIDES)
    config = config_class(
        image_token_id=t.vocab.image_id,
        vision_start_token_id=t.tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_config={"spatial_merge_size": MERGE},
    )
    with torch.device("meta"):
        model = model_class(config)
    mask = torch.arange(batch.input_ids.shape[1]) < batch.lengths[:, None]
    types = ((batch.input_ids == t.vocab.image_id) & mask).int()
    theirs, _ = model.get_rope_index(batch.input_ids, types, image_grid_thw=batch.image_grid_thw, attention_mask=mask.long())
    assert len(batch.lengths.unique()) == 4
    assert torch.equal(batch.position_ids[:, mask], theirs[:, mask])


def test_positions_by_hand() -> None:
    """48 x 32 px with 16 px tokens: two rows of three."""
    t = tiny()
    batch = t.batch(seed=1, counts=(0,), sides=((48, 32),))
    start = int(batch.image_pos[0])
    got = batch.position_ids[:, 0, start - 1 : start + 8] - start
    assert got.tolist() == [[-1, 0, 0, 0, 0, 0, 0, 3, 4], [-1, 0, 0, 0, 1, 1, 1, 3, 4], [-1, 0, 1, 2, 0, 1, 2, 3, 4]]
