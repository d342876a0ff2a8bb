"""Which base weights an adapter was trained on: sizes and a digest of a few numbers of every frozen tensor.

Values are compared in bfloat16, the type of the published weights, so that loading them in float32 changes nothing.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from coordvlm.utils.errors import ContractError

log = logging.getLogger(__name__)
#: Rows of a token table that count, evenly spaced.
_TABLE_ROWS = 16
_TABLES = ("embed_tokens.weight", "lm_head.weight")


@dataclass(frozen=True)
class BaseIdentity:
    """Of a base model.

    Args:
        source: what was loaded: ``<hub id>@<revision>``, a folder, or the name of a random model; for messages, not compared.
        architecture: sizes by name.
        vectors: digest of norms, biases and rows of the token tables; never quantised.
        matrices: digest of the first row of every matrix of the language model and the vision blocks; None: not known.
        quantised: ``none``, ``4 bit`` or ``8 bit``.
    """

    source: str
    architecture: Mapping[str, int | str]
    vectors: str
    matrices: str | None
    quantised: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: object) -> BaseIdentity:
        """From ``to_dict``, read from ``where``."""
        if set(data) != {f.name for f in fields(cls)}:
            raise ContractError(f"{where}: cannot tell which base the adapter belongs to: its fields are {sorted(data)}")
        return cls(**data)

    def differences(self, other: BaseIdentity) -> list[str]:
        """In words; empty when an adapter of one fits the other."""
        if self.architecture != other.architecture:
            names = sorted(set(self.architecture) | set(other.architecture))
            pairs = [(n, self.architecture.get(n), other.architecture.get(n)) for n in names]
            return [f"{n} {a} and {b}" for n, a, b in pairs if a != b]
        same = [("norms, biases or embeddings", self.vectors, other.vectors), ("weights", self.matrices, other.matrices)]
        return [f"other {name}" for name, a, b in same if a != b and None not in (a, b)]

    def require(self, other: BaseIdentity, *, where: object) -> None:
        """Refuse an adapter (``self``, read from ``where``) on another base; say so when only the quantisation differs.

        Raises:
            ContractError: naming both bases.
        """
        if found := self.differences(other):
            raise ContractError(
                f"{where}: this adapter was trained on another base: {self.source} then, {other.source} now ({'; '.join(found)}); "
                "it would say something else there"
            )
        if self.quantised != other.quantised:
            log.warning(
                "the adapter was trained on a base with quantisation %s and stands on one with %s now: its answers may differ a little",
                self.quantised, other.quantised,
            )


def base_name(name: str) -> str:
    """A parameter's name as it was before a layer got an adapter."""
    return name.replace(".base_layer.", ".")


def identify(hf: nn.Module, *, source: str, matrices: str | None = None) -> BaseIdentity:
    """Of a model with or without an adapter; what trains beside one (the merger) does not count.

    Args:
        matrices: digest to take instead of the model's own, which are quantised.
    """
    config: Any = hf.config
    text, vision = config.text_config, config.vision_config
    sizes: dict[str, int | str] = {"family": config.model_type}
    sizes |= {f"text.{n}": int(getattr(text, n)) for n in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")}
    sizes |= {f"text.{n}": int(getattr(text, n)) for n in ("num_attention_heads", "num_key_value_heads")}
    sizes |= {"vision.depth": int(vision.depth), "vision.patch_size": int(vision.patch_size)}
    named = {base_name(n): p for n, p in hf.named_parameters() if ".lora_" not in n and "merger" not in n}
    quantised = {n for n, p in named.items() if not p.is_floating_point()}
    kind = "none" if not quantised else "4 bit" if named[min(quantised)].dtype == torch.uint8 else "8 bit"
    if matrices is None and not quantised:
        matrices = digest((n, p.detach()[0]) for n, p in named.items() if is_matrix(n, p))
    vectors = digest((n, _part_of(n, p.detach())) for n, p in named.items() if n not in quantised and not is_matrix(n, p))
    return BaseIdentity(source, sizes, vectors, matrices, kind)


def is_matrix(name: str, parameter: Tensor) -> bool:
    return parameter.ndim > 1 and not name.endswith(_TABLES)


def _part_of(name: str, value: Tensor) -> Tensor:
    return value[:: max(1, len(value) // _TABLE_ROWS)] if name.endswith(_TABLES) else value


def digest(named: Iterable[tuple[str, Tensor]]) -> str:
    """16 hex digits over names and values, in the order of names."""
    found = hashlib.sha256()
    for name, value in sorted(named, key=lambda item: item[0]):
        found.update(name.encode())
        found.update(value.detach().to(torch.bfloat16).contiguous().cpu().view(torch.int16).numpy().tobytes())
    return found.hexdigest()[:16]


def matrices_of_files(hf: nn.Module, files: Iterable[Path]) -> str:
    """The digest of ``hf``'s matrices from the files it was read and quantised from.

    Raises:
        ContractError: a matrix is in none of the files.
    """
    from safetensors import safe_open

    wanted = {_short(n): n for n, p in hf.named_parameters() if "merger" not in n and (is_matrix(n, p) or not p.is_floating_point())}
    rows: dict[str, Tensor] = {}
    for path in files:
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118 - not a mapping
                if (name := wanted.get(_short(key))) is not None:
                    rows[name] = file.get_slice(key)[:1][0]
    if absent := sorted(set(wanted.values()) - set(rows)):
        raise ContractError(f"{len(absent)} matrices of the model are in none of its weight files, first {absent[0]}")
    return digest(rows.items())


def _short(name: str) -> str:
    """Families write ``model.layers``, ``model.language_model.layers`` or ``language_model.model.layers`` for one and the same."""
    parts = [p for p in name.split(".") if p not in ("model", "language_model")]
    return ".".join(parts)
