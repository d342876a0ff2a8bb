"""The evaluation protocol's hash: two results may be compared only when it is equal."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

#: What decides a result beside the model. ``data`` is ``GroundTruth.digest()`` of the images that were evaluated.
PROTOCOL_KEYS = ("data", "split", "image_limits", "grammar", "readout", "max_new_tokens", "score", "backend")


def protocol_hash(protocol: Mapping[str, object]) -> str:
    """12 hex digits over a protocol of plain JSON values; the order of its keys does not matter.

    Raises:
        ValueError: one of ``PROTOCOL_KEYS`` is missing, so that results would look comparable that need not be; or a value that
            is no JSON (NaN included). Further keys are welcome and count.
    """
    missing = [key for key in PROTOCOL_KEYS if key not in protocol]
    if missing:
        raise ValueError(f"the evaluation protocol lacks {', '.join(missing)}; results would look comparable that need not be")
    try:
        text = json.dumps(dict(protocol), sort_keys=True, allow_nan=False)
    except TypeError as error:
        raise ValueError(f"the evaluation protocol must hold plain JSON values: {error}") from error
    return hashlib.sha256(text.encode()).hexdigest()[:12]
