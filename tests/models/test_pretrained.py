"""Folders in the published format, of all three families, and what is wrong with broken ones."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from huggingface_hub import constants
from huggingface_hub.errors import RepositoryNotFoundError
from safetensors.torch import load_file, save_file

from coordvlm.models import pretrained
from coordvlm.models.loading import LoadedModel
from coordvlm.models.pretrained import load_pretrained
from coordvlm.models.tiny import SPECIAL, tiny_tokenizer
from coordvlm.sequence.prompt import PromptBuilder
from coordvlm.utils.errors import ConfigError, ContractError
from tests.folders import TEMPLATE_FILES, edit_json, write_folder
from tests.tiny import FAMILIES, tiny_hf

NATIVE = {"qwen2_vl": ("qwen2_box", "qwen1000"), "qwen2_5_vl": ("json_digits", "pixel"), "qwen3_vl": ("json_digits", "qwen1000")}


def load(path: Path | None, of: str, **changes: Any) -> LoadedModel:
    settings = {"hub_id": "Nobody/Nothing-VL", "revision": "main", "dtype": "float32", "attention": "sdpa"}
    return load_pretrained(**{**settings, "path": None if path is None else str(path), "family": of, **changes})


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("shards", [True, False], ids=["shards", "one file"])
def test_every_weight_comes_from_the_folder(tmp_path: Path, family: str, tied: bool, shards: bool) -> None:
    folder = write_folder(tmp_path, family, tied=tied, shards=shards, dtype=torch.float32, seed=7)
    assert (len(list(folder.glob("*.safetensors"))) > 2) == shards
    loaded = load(folder, family)
    saved = tiny_hf(tiny_tokenizer(600), family, table_size=loaded.hf.config.text_config.vocab_size, tied=tied, seed=7).state_dict()
    found = loaded.hf.state_dict()
    assert set(found) == set(saved)
    assert all(torch.equal(found[name], saved[name]) for name in saved)
    assert (loaded.hf.lm_head.weight is loaded.hf.get_input_embeddings().weight) == loaded.tied == tied
    assert len(loaded.tokenizer) < loaded.hf.get_input_embeddings().num_embeddings  # padded


def test_the_loaded_model_answers_as_the_saved_one(tmp_path: Path, family: str) -> None:
    """Rope and everything else that comes from config.json in its published spelling, not from the weights."""
    loaded = load(write_folder(tmp_path, family, dtype=torch.float32), family)
    saved = tiny_hf(tiny_tokenizer(600), family, table_size=loaded.hf.config.text_config.vocab_size, tied=True)
    ids = torch.arange(40).view(2, 20) * 7
    position_ids = torch.stack([torch.arange(20) * k for k in (1, 2, 3)])[:, None].expand(3, 2, 20)  # unlike on the three axes
    with torch.no_grad():
        a, b = (m.eval()(input_ids=ids, position_ids=position_ids).logits for m in (loaded.hf, saved))
    torch.testing.assert_close(a, b)


def test_what_a_folder_says_about_itself(tmp_path: Path, family: str) -> None:
    loaded = load(write_folder(tmp_path, family, min_pixels=2048, max_pixels=8192), family)
    assert (loaded.family, loaded.source, loaded.patch, loaded.merge) == (family, str(tmp_path), 8, 2)
    assert (loaded.min_pixels, loaded.max_pixels) == (2048, 8192)
    assert (loaded.native_sequence, loaded.native_coords) == NATIVE[family]
    assert loaded.image_mean == ((0.5,) * 3 if family == "qwen3_vl" else (0.48145466, 0.4578275, 0.40821073))
    for text in SPECIAL:
        assert len(loaded.tokenizer.encode(text, add_special_tokens=False)) == 1, text


@pytest.mark.parametrize("file", TEMPLATE_FILES)
def test_the_prompt_is_the_families_own_wherever_the_template_is(tmp_path: Path, family: str, file: str) -> None:
    loaded = load(write_folder(tmp_path, family, template_file=file), family)
    image_id = loaded.hf.config.image_token_id
    ids = PromptBuilder(loaded.tokenizer, image_id, text="Where is it?", class_list_text="{names}").ids(3)
    system = "" if family == "qwen3_vl" else "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    assert loaded.tokenizer.decode(ids) == (
        f"{system}<|im_start|>user\n<|vision_start|><|image_pad|><|image_pad|><|image_pad|><|vision_end|>Where is it?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_the_processors_template_has_precedence_as_in_the_library(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, "qwen2_vl", template_file="chat_template.json")
    edit_json(folder / "tokenizer_config.json", chat_template="text only")
    assert "image_pad" in str(load(folder, "qwen2_vl").tokenizer.chat_template)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_have_the_asked_precision(tmp_path: Path, family: str, dtype: str) -> None:
    loaded = load(write_folder(tmp_path, family), family, dtype=dtype)
    assert {p.dtype for p in loaded.hf.parameters()} == {getattr(torch, dtype)}


def test_settings_saved_in_one_processor_file_are_read(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, "qwen3_vl")
    content = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": content, "processor_class": "Qwen3VLProcessor"}))
    assert load(folder, "qwen3_vl").max_pixels == 16384


def test_asked_pixel_limits_replace_the_processors_and_are_checked(tmp_path: Path) -> None:
    loaded = load(write_folder(tmp_path, "qwen2_vl"), "qwen2_vl")
    assert loaded.pixel_limits(None, None) == (1024, 16384)
    assert loaded.pixel_limits(256, None) == (256, 16384)
    for low, high, message in [
        (None, 255, "max_pixels=255 holds no image: .* 16 x 16 = 256 px"),
        (20000, None, "min_pixels=20000 above max_pixels=16384"),
        (0, None, "min_pixels must be a whole number of pixels above zero, got 0"),
        (None, 0.5, "max_pixels must be a whole number"),
    ]:
        with pytest.raises(ConfigError, match=message):
            loaded.pixel_limits(low, high)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------------ bad folders
def drop(pattern: str) -> Callable[[Path], None]:
    return lambda folder: next(iter(sorted(folder.glob(pattern)))).unlink()


def shorten(folder: Path) -> None:
    path = sorted(folder.glob("*.safetensors"))[1]
    path.write_bytes(path.read_bytes()[:-10])


def pointer(folder: Path) -> None:
    sorted(folder.glob("*.safetensors"))[0].write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")


def without_a_tensor(folder: Path) -> None:
    path = sorted(folder.glob("*.safetensors"))[1]
    tensors = load_file(path)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, path, metadata={"format": "pt"})


def with_another_head(folder: Path) -> None:
    """Weights of an untied model under a configuration that says tied."""
    path = sorted(folder.glob("*.safetensors"))[1]
    tensors = load_file(path)
    tensors["lm_head.weight"] = torch.ones(518, 32, dtype=torch.bfloat16)
    save_file(tensors, path, metadata={"format": "pt"})
    index = folder / "model.safetensors.index.json"
    edit_json(index, weight_map={**json.loads(index.read_text())["weight_map"], "lm_head.weight": path.name})


def only_bin(folder: Path) -> None:
    for path in [*folder.glob("*.safetensors"), *folder.glob("*.index.json")]:
        path.unlink()
    (folder / "pytorch_model.bin").touch()


def nested(folder: Path) -> None:
    inner = folder / "Qwen2-VL"
    inner.mkdir()
    for path in [p for p in folder.iterdir() if p.is_file()]:
        path.rename(inner / path.name)


def preprocessor(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "preprocessor_config.json", **changes)


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "a missing shard": (drop("model-00002*"), r"lacks 1 of \d weight files: model-00002-of-0000\d.safetensors; download it again"),
    "a shard cut short": (shorten, "model-00002.* bytes where its header says"),
    "a pointer": (pointer, "model-00001.*is a Git LFS pointer"),
    "no weights": (only_bin, "only safetensors are read, not pytorch_model.bin"),
    "a tensor is missing": (without_a_tensor, "the weights in .* lack .*would have stayed random"),
    "untied weights": (with_another_head, "tie_word_embeddings=True, but the weights say otherwise"),
    "no config": (drop("config.json"), "is not a model folder: it has no config.json; it holds chat_template.json"),
    "one level too high": (nested, "did you mean model.path=.*/Qwen2-VL"),
    "broken JSON": (lambda f: (f / "config.json").write_text("{"), "config.json cannot be read as JSON"),
    "no template": (drop("chat_template.json"), "no chat template: no chat_template.jinja or .json"),
    "no tokenizer": (drop("tokenizer.json"), "has no tokenizer"),
    "an unreadable tokenizer": (lambda f: (f / "tokenizer.json").write_text("[]"), "the tokenizer in .* cannot be read"),
    "a table that is too small": (lambda f: edit_json(f / "config.json", vocab_size=400), r"ids up to 477, but .* table has 400 rows"),
    "a table unlike the config": (
        lambda f: edit_json(f / "config.json", vocab_size=600),
        "differ in shape from config.json in model.language_model.embed_tokens.weight",
    ),
    "another image token": (lambda f: edit_json(f / "config.json", image_token_id=3), "image_token_id=3, the tokenizer gives"),
    "no image settings": (drop("preprocessor_config.json"), "has no preprocessor_config.json"),
    "another patch": (preprocessor(patch_size=14), "patch_size is 14, but the weights were trained with 8"),
    "limits the wrong way round": (preprocessor(min_pixels=4096, max_pixels=2048), "min_pixels=4096 above max_pixels=2048"),
    "a limit below one token": (preprocessor(max_pixels=200), "max_pixels=200 holds no image"),
    "no spread": (preprocessor(image_std=[0, 1, 1]), "std above zero"),
    "another scale": (preprocessor(rescale_factor=1.0), "rescale_factor must be 1/255"),
    "no mean": (preprocessor(image_mean=...), "three numbers each"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_folder_is_refused_in_a_sentence_or_two(tmp_path: Path, name: str) -> None:
    breaks, message = BROKEN[name]
    folder = write_folder(tmp_path, "qwen2_vl")
    breaks(folder)
    with pytest.raises((ConfigError, ContractError), match=message) as caught:
        load(folder, "qwen2_vl")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value).replace(str(tmp_path), "")) < 320


@pytest.mark.parametrize("wrong", [f for f in FAMILIES if f != "qwen2_5_vl"])
def test_weights_of_another_family_are_refused(tmp_path: Path, wrong: str) -> None:
    title = {"qwen2_vl": "Qwen2-VL", "qwen3_vl": "Qwen3-VL"}[wrong]
    with pytest.raises(ContractError, match=rf"is a {title} model \({wrong}\), but the chosen model= is a Qwen2.5-VL"):
        load(write_folder(tmp_path, wrong), "qwen2_5_vl")
    edit_json(tmp_path / "config.json", model_type="llava")
    with pytest.raises(ContractError, match="of type 'llava'"):
        load(tmp_path, "qwen2_5_vl")


@pytest.mark.parametrize(("key", "value"), [("dtype", "float16"), ("attention", "flash"), ("family", "qwen4_vl")])
def test_an_unknown_setting_is_refused(tmp_path: Path, key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"model.load.{key} must be one of .*, got '{value}'"):
        load(tmp_path, "qwen2_vl", **{key: value})


def test_flash_attention_without_its_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"flash-attn.*or use sdpa"):
        load(tmp_path, "qwen2_vl", attention="flash_attention_2")


def test_an_old_transformers_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers, "__version__", "4.57.1")
    with pytest.raises(ConfigError, match=r"transformers 4.57.1 is too old .* install transformers>=5.17,<6"):
        load(tmp_path, "qwen2_vl")


def test_of_several_models_in_a_folder_the_fitting_one_is_proposed(tmp_path: Path) -> None:
    for family in FAMILIES:
        write_folder(tmp_path / family, family)
    with pytest.raises(ConfigError, match=r"did you mean model.path=.*/qwen2_5_vl\?"):
        load(tmp_path, "qwen2_5_vl")


def test_no_folder_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model.path=.*/absent is not a folder"):
        load(tmp_path / "absent", "qwen2_vl")


# ------------------------------------------------------------------------------------------------------------------------- hub
@pytest.mark.parametrize("offline", [True, False])
def test_without_network_the_error_says_what_to_download_and_does_not_wait(monkeypatch: pytest.MonkeyPatch, offline: bool) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setattr(pretrained, "HfApi", lambda: huggingface_hub.HfApi(endpoint="http://127.0.0.1:9"))
    started = time.perf_counter()
    with pytest.raises(ConfigError) as caught:
        load(None, "qwen3_vl", hub_id="Nobody/Qwen3-VL-4B-Instruct", revision="v2")
    assert time.perf_counter() - started < 5
    message = str(caught.value)
    assert ("HF_HUB_OFFLINE is set" if offline else "http://127.0.0.1:9 cannot be reached") in message
    assert "hf download Nobody/Qwen3-VL-4B-Instruct --revision v2 --local-dir Qwen3-VL-4B-Instruct" in message
    assert "model.path=/path/to/Qwen3-VL-4B-Instruct" in message


class Hub:
    """A hub that has one repository, and counts what it is asked."""

    def __init__(self, folder: Path | None, *, cached: bool = False) -> None:
        self.folder, self.cached, self.asked = folder, cached, []

    def model_info(self, hub_id: str, *, revision: str, timeout: float) -> None:
        self.asked.append("info")
        if self.folder is None:
            raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)

    def snapshot_download(self, hub_id: str, *, revision: str, allow_patterns: list[str], local_files_only: bool = False) -> str:
        self.asked.append("cache" if local_files_only else "download")
        if local_files_only and not self.cached:
            raise FileNotFoundError(hub_id)
        return str(self.folder)


def use(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "HfApi", lambda: hub)
    monkeypatch.setattr(pretrained, "snapshot_download", hub.snapshot_download)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.mark.parametrize(("cached", "asked"), [(True, ["cache"]), (False, ["cache", "info", "download"])])
def test_what_is_in_the_cache_is_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: bool, asked: list[str]) -> None:
    hub = Hub(write_folder(tmp_path, "qwen2_vl"), cached=cached)
    use(hub, monkeypatch)
    assert load(None, "qwen2_vl").source == "Nobody/Nothing-VL@main"
    assert hub.asked == asked


def test_a_cache_that_was_cut_short_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(write_folder(tmp_path, "qwen2_vl"), cached=True)
    use(hub, monkeypatch)
    drop("model-00002*")(tmp_path)
    with pytest.raises(ConfigError, match="lacks 1 of"):
        load(None, "qwen2_vl")  # this hub has no more either
    assert hub.asked == ["cache", "info", "download"]


def test_a_repository_that_does_not_exist_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    use(Hub(None), monkeypatch)
    with pytest.raises(ConfigError, match="Nobody/Nothing-VL is not available: there is no such repository"):
        load(None, "qwen2_vl")
