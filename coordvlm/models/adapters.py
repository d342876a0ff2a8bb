"""LoRA and DoRA on a backbone's Hugging Face model, made by peft. The new-token rows stay outside and train beside every adapter.

The base weights are frozen; adapters are float32 whatever the base is, like the rows. Low-rank adaptation: arXiv:2106.09685;
rank-stabilised scaling: arXiv:2312.03732; DoRA: arXiv:2402.09353.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from coordvlm.models.base_identity import BaseIdentity, base_name, identify
from coordvlm.utils.errors import ConfigError

#: What ``adapter.targets`` may say instead of a regular expression. A bare ``gate_proj`` would hit Qwen2.5's vision tower.
TARGETS = {
    "attention": r".*language_model.*\.(q|k|v|o)_proj",
    "language": r".*language_model.*\.(q|k|v|o|gate|up|down)_proj",
    "language_and_vision": (
        r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"
        r"|.*visual\.blocks\..*\.(qkv|proj|fc1|fc2|linear_fc1|linear_fc2|gate_proj|up_proj|down_proj)"
    ),
}
#: Names of bitsandbytes' quantised linear layers, and of peft's around them.
QUANTISED = ("Linear4bit", "Linear8bitLt")
_NAME = "default"  # peft's name of the only adapter


@dataclass(frozen=True)
class Lora:
    """Settings of an adapter.

    Args:
        r: rank. alpha: the update is scaled by alpha / r, or alpha / sqrt(r) with ``rslora``.
        dropout: of the adapters' input, in [0, 1).
        dora: learn magnitude and direction of each weight apart.
        targets: which linear layers get one: ``attention`` (q, k, v, o of the language model), ``language`` (also gate, up, down),
            ``language_and_vision`` (also the vision blocks), or a regular expression that a module's whole name must match.
        merger: train the merger too, whole and in float32.
    """

    r: int
    alpha: float
    dropout: float
    rslora: bool
    dora: bool
    targets: str
    merger: bool

    def __post_init__(self) -> None:
        if isinstance(self.r, bool) or not isinstance(self.r, int) or self.r < 1:
            raise ConfigError(f"adapter.r must be a whole number above zero, got {self.r!r}")
        if not _is_number(self.alpha) or not 0 < self.alpha < float("inf"):
            raise ConfigError(f"adapter.alpha must be positive, got {self.alpha!r}; 0 would switch the adapter off")
        if not _is_number(self.dropout) or not 0 <= self.dropout < 1:
            raise ConfigError(f"adapter.dropout must be in [0, 1), got {self.dropout!r}")
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ConfigError(f"adapter.targets={self.targets!r} is not a regular expression: {error}") from error

    @property
    def pattern(self) -> str:
        """The regular expression over module names."""
        return TARGETS.get(str(self.targets), str(self.targets))

    def peft_config(self, source: str) -> Any:
        """The ``peft.LoraConfig``; ``source`` as in ``LoadedModel`` becomes its base model and revision."""
        from peft import LoraConfig

        base, _, revision = source.partition("@")
        return LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # only ever a factor
            lora_dropout=self.dropout,
            use_rslora=self.rslora,
            use_dora=self.dora,
            target_modules=self.pattern,
            task_type="CAUSAL_LM",
            base_model_name_or_path=base,
            revision=revision or None,
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class Adapter:
    """What ``add_adapter`` made, and what it stands on.

    Args:
        settings, config: of this adapter, ours and peft's.
        hf: the model it is in. source, matrices: see ``BaseIdentity``.
    """

    def __init__(self, settings: Lora, config: Any, hf: nn.Module, *, source: str, matrices: str | None) -> None:
        self.settings, self.config, self._hf, self._source, self._matrices = settings, config, hf, source, matrices
        #: The checkpoint that the base weights were taken from after loading, if any (a warm start).
        self.started_from: str | None = None

    @cached_property
    def base(self) -> BaseIdentity:
        """Of the frozen weights. Taken when first asked for, which must be before they are shared out over processes."""
        return identify(self._hf, source=self._source, matrices=self._matrices)

    def parameters(self) -> dict[str, nn.Parameter]:
        """Name within the Hugging Face model -> parameter, of the adapter alone."""
        return {name: p for name, p in self._hf.named_parameters() if is_adapter(name)}

    def peft_names(self) -> dict[str, str]:
        """Name in a peft file, less its ``base_model.model.`` -> name within the Hugging Face model."""
        from peft import get_peft_model_state_dict

        names = {id(p): name for name, p in self.parameters().items()}
        state = get_peft_model_state_dict(self._hf, state_dict=self.parameters(), adapter_name=_NAME, save_embedding_layers=False)
        return {key: names[id(p)] for key, p in state.items()}

    def base_changed(self, started_from: str) -> None:
        """Other base weights were loaded under the adapter: identity and DoRA's magnitudes are theirs now."""
        self.started_from = started_from
        self.__dict__.pop("base", None)
        with torch.no_grad():
            for _, layer in adapted(self._hf):
                if _NAME in (magnitudes := getattr(layer, "lora_magnitude_vector", {})):
                    magnitudes[_NAME].weight.copy_(base_weight(layer).norm(dim=1))


def is_adapter(name: str) -> bool:
    """Whether a parameter's name is one that peft gives."""
    return ".lora_" in name


def adapted(hf: nn.Module) -> list[tuple[str, Any]]:
    """(name, peft layer) of every linear layer with an adapter."""
    return [(name, module) for name, module in hf.named_modules() if hasattr(module, "lora_A") and hasattr(module, "base_layer")]


def base_weight(layer: Any) -> Tensor:
    """float[out, in] of the layer beneath an adapter, at least float32; dequantised where it is quantised."""
    weight = _dequantised(layer.get_base_layer())
    return weight.to(torch.promote_types(weight.dtype, torch.float32))


def merged_weight(layer: Any) -> Tensor:
    """float[out, in] that does alone what base and adapter do together."""
    weight = base_weight(layer)
    delta: Tensor = layer.get_delta_weight(_NAME).detach().to(weight)
    if _NAME not in getattr(layer, "lora_magnitude_vector", {}):
        return weight + delta
    magnitude: Tensor = layer.lora_magnitude_vector[_NAME].weight.detach().to(weight)
    norms: Tensor = (weight + delta).norm(dim=1)
    return (weight + delta) * (magnitude / norms)[:, None]


@torch.no_grad()
def merged_state(hf: nn.Module, keys: Iterable[str]) -> dict[str, Tensor]:
    """The state of the plain model, whose keys are given: adapters merged, quantised weights whole again."""
    state: dict[str, Tensor] = {base_name(name): value for name, value in hf.state_dict().items()}
    for name, module in hf.named_modules():
        if type(module).__name__ in QUANTISED and not hasattr(module, "base_layer"):
            state[base_name(f"{name}.weight")] = _dequantised(module)
    state |= {f"{name}.weight": merged_weight(layer) for name, layer in adapted(hf)}
    return {key: state[key] for key in keys}


def _dequantised(module: nn.Module) -> Tensor:
    from peft.utils.integrations import dequantize_module_weight

    return dequantize_module_weight(module).detach()  # type: ignore[no-any-return]


def matched(hf: nn.Module, settings: Lora) -> list[str]:
    """Names of the modules that ``targets`` matches.

    Raises:
        ConfigError: nothing matches (with the names there are), or something an adapter cannot or must not sit on.
    """
    pattern, modules = re.compile(settings.pattern), dict(hf.named_modules())
    names = [name for name in modules if pattern.fullmatch(name)]
    linear = {name for name, module in modules.items() if isinstance(module, nn.Linear)}
    where = f"adapter.targets={settings.targets!r}"
    if not names:
        raise ConfigError(f"{where} matches no module; linear layers here: {', '.join(_families(linear))}")
    if other := next((name for name in names if name not in linear), None):
        raise ConfigError(f"{where} matches {other!r}, a {type(modules[other]).__name__}; an adapter sits on linear layers only")
    if heads := [name for name in names if name.endswith("lm_head")]:
        raise ConfigError(f"{where} matches {heads[0]}: the head's weight is applied to chosen rows, so an adapter on it does nothing")
    return names


def _families(names: Iterable[str]) -> list[str]:
    """Layer numbers as ``*``."""
    return sorted({re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name) for name in names})


def add_adapter(backbone: Any, settings: Lora, *, source: str, seed: int, matrices: str | None = None) -> Adapter:
    """Freeze the base of a ``Backbone`` and put an adapter on it, in place.

    Args:
        source: what the base is, see ``LoadedModel``. seed: of the adapter's first values; the global generator is left as it was.
        matrices: digest of quantised matrices as they were before, see ``BaseIdentity``.
    Raises:
        ConfigError: targets that do not fit this model, or that contradict ``model.freeze``.
    """
    from peft import inject_adapter_in_model

    hf = backbone.hf
    names = matched(hf, settings)
    _refuse_contradictions(names, settings, frozenset(backbone.frozen))
    config = settings.peft_config(source)
    hf.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, hf, adapter_name=_NAME)
    adapter = Adapter(settings, config, hf, source=source, matrices=matrices)
    for parameter in adapter.parameters().values():
        parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
        parameter.requires_grad_(True)
    if settings.merger:
        visual = hf.model.visual
        for merger in (visual.merger, *getattr(visual, "deepstack_merger_list", ())):
            _train_in_float32(merger)
    backbone.adapter = adapter
    backbone.set_checkpointing(backbone.checkpoint_every)
    return adapter


def _refuse_contradictions(names: Iterable[str], settings: Lora, frozen: frozenset[str]) -> None:
    parts = {name: _part(name) for name in names}
    if settings.merger and "merger" in frozen:
        raise ConfigError("adapter.merger=true trains the merger and model.freeze names it; change one of them")
    for part in ("vision", "merger", "language"):
        inside = [name for name, p in parts.items() if p == part]
        if inside and part in frozen:
            raise ConfigError(
                f"model.freeze names {part}, but adapter.targets={settings.targets!r} matches {len(inside)} modules there, "
                f"first {inside[0]}; take {part} out of model.freeze: beside an adapter the base weights are frozen anyway"
            )
        if inside and part == "merger" and settings.merger:
            raise ConfigError(f"adapter.merger=true trains the merger whole, and adapter.targets matches {inside[0]}; choose one")


def _part(name: str) -> str:
    if "visual." not in name:
        return "language"
    return "merger" if ".merger." in name or ".deepstack_merger_list." in name else "vision"


def _train_in_float32(module: nn.Module) -> None:
    """Weights in at least float32 beside a base that is bfloat16, or will be; small updates would be lost there."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
        parameter.requires_grad_(True)
    module.register_forward_pre_hook(_as_weights)
    module.register_forward_hook(_as_given)


def _as_weights(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
    (x,) = args
    module.given_type = x.dtype  # type: ignore[assignment]
    return (x.to(next(module.parameters()).dtype),)


def _as_given(module: nn.Module, args: tuple[Tensor], out: Tensor) -> Tensor:
    given: Any = module.given_type
    return out.to(given)
