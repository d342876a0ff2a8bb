"""Every shipped YAML: composed, its targets resolved and checked, and built."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from coordvlm import build
from coordvlm.utils.targets import iterate_targets, validate_targets
from tests.compose import CONF, compose
from tests.data.layouts import write_small
from tests.data.phrase_layouts import write_small_phrases
from tests.data.point_layouts import write_small_points
from tests.data.video_layouts import write_small_video
from tests.data_root import peer_data
from tests.e2e import coco
from tests.e2e.commands import FAST, call, refusal, train
from tests.folders import PRESETS, write_folder
from tests.foveated_folders import write_parts
from tests.recipes import ANSWERING, CLIPS, COUNTING

#: Experiments on real data -> the folder of the test data they need.
REAL = {"overfit_bccd": "bccd", "overfit_refcoco_sample": "refcoco_sample"}
GROUPS = [e for e in yaml.safe_load((CONF / "train.yaml").read_text())["defaults"] if isinstance(e, dict)]
OPTIONS = sorted(
    (group, file.stem)
    for entry in GROUPS
    for group in entry
    if group not in ("hydra", "experiment")
    for file in (CONF / group).glob("*.yaml")
)
BUILD = "".join(p.read_text() for p in (CONF.parent / "coordvlm" / "build").glob("*.py"))
#: What an option cannot do without.
NEEDS = {
    ("coords", "pixel"): ["sequence=json_digits", "loss=ce"],
    ("coords", "qwen1000"): ["sequence=json_digits", "loss=ce"],
    ("coords", "unit"): ["sequence=json_unit", "loss=ce"],
    ("decode", "consensus"): ["data=phrases"],
    ("schedule", "alternate"): ["data=dots"],
    ("schedule", "dual"): ["data=dots"],
    ("sequence", "json_digits"): ["coords=qwen1000", "loss=ce"],
    ("sequence", "json_unit"): ["coords=unit", "loss=ce"],
    ("sequence", "qwen2_box"): ["coords=qwen1000", "loss=ce"],
}
#: What data with points choose.
COUNTING_OPTIONS = (("task", "count"), ("metrics", "counting"), ("sequence", "count"), ("decode", "count"))
#: What data with clips choose.
CLIP_OPTIONS = (
    ("task", "video"), ("metrics", "foveation"), ("sequence", "clip"), ("decode", "clip"), ("model", "foveated_tiny"),
    ("module", "foveated"),
)
COMMANDS = ("train", "eval", "predict", "bench", "compare", "audit")


def options_of(group: str, option: str, folder: Path) -> list[str]:
    """Overrides that choose an option and give it what it cannot do without."""
    if (group, option) == ("data", "coco"):
        return list(coco.write(folder, train=coco.content(), val=coco.content(3, first_id=50)))
    if (group, option) in (("task", "ground"), ("metrics", "grounding")):
        return ["data=phrases"]  # which chooses both
    if (group, option) in COUNTING_OPTIONS:
        return ["data=dots"]  # which chooses all of them
    if group == "loss" and option in COUNTING:
        return ["data=dots", f"loss={option}"]
    if group == "loss" and option in CLIPS:
        return ["data=moving_ball", f"loss={option}"]
    if (group, option) in CLIP_OPTIONS:
        return ["data=grid_symbols"]  # which chooses all of them
    if group == "data" and option in ("jsonl", "yolo", "voc"):
        return write_small(option, folder)
    if group == "data" and option.startswith(("ref", "phrase_")):
        return write_small_phrases(option, folder)
    if (group, option) == ("data", "video"):
        return write_small_video(folder)
    if group == "data" and option in ("points", "fsc147", "coco_points"):
        return write_small_points(option, folder)
    if (group, option) == ("model", "foveated_135m"):
        return ["data=grid_symbols", f"model={option}", *write_parts(folder)]
    if group == "model" and not option.startswith("tiny"):
        return [f"model={option}", f"model.path={write_folder(folder, PRESETS[option])}", "trainer=cpu"]
    return [f"{group}={option}", *NEEDS.get((group, option), ())]


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=map("=".join, OPTIONS))
def test_every_option_is_composed_and_built(tmp_path: Path, group: str, option: str) -> None:
    cfg = compose(tmp_path / "run", *options_of(group, option, tmp_path / "data"))
    assert validate_targets(cfg, build.SUPPLIED) > 10
    if (group, option) == ("trainer", "gpu"):
        assert (cfg.trainer.accelerator, cfg.trainer.precision) == ("gpu", "bf16-mixed")
        return
    experiment = build.build_experiment(cfg)
    trainer = build.build_trainer(cfg, tmp_path / "run", experiment.model.contract)
    assert build.csv_log(trainer) is not None
    assert len(experiment.truth.image_ids) > 0


def test_every_folder_of_the_configuration_is_a_group_that_is_tested() -> None:
    tested = {group for group, _ in OPTIONS} | {"hydra", "experiment", "loss_term"}
    assert {p.name for p in CONF.iterdir() if p.is_dir()} == tested
    assert {p.stem for p in CONF.glob("*.yaml")} == {*COMMANDS, "eval_base", "predict_base"}  # for run=null


@cache
def terms_of_recipes() -> frozenset[str]:
    """Targets of all shipped recipes together."""
    recipes = [compose(Path("run"), f"loss={recipe}").loss for recipe in (*ANSWERING, *COUNTING, *CLIPS)]
    return frozenset(node["_target_"] for recipe in recipes for _, node in iterate_targets(OmegaConf.to_container(recipe, resolve=True)))


@pytest.mark.parametrize("term", sorted(p.stem for p in (CONF / "loss_term").glob("*.yaml")))
def test_every_loss_term_is_part_of_a_recipe(term: str) -> None:
    mine = yaml.safe_load((CONF / "loss_term" / f"{term}.yaml").read_text())["term"]["_target_"]
    assert mine in terms_of_recipes()


@pytest.mark.parametrize("file", sorted(CONF.rglob("*.yaml")), ids=lambda p: str(p.relative_to(CONF)))
def test_every_file_says_what_it_is_for(file: Path) -> None:
    lines = [line for line in file.read_text().splitlines() if line.strip() and not line.startswith("# @package")]
    assert lines[0].startswith("#") or file.parent.name in ("help", "paths")
    assert "\t" not in file.read_text()


@pytest.mark.parametrize("command", COMMANDS)
def test_no_key_of_a_command_is_declared_and_never_read(command: str) -> None:
    keys = set(yaml.safe_load((CONF / f"{command}.yaml").read_text())) - {"defaults"}
    source = (CONF.parent / "coordvlm" / f"{command}.py").read_text() + BUILD
    unread = {key for key in keys if not re.search(rf"\bcfg\.{key}\b|\"{key}\"", source)}
    assert not unread


@pytest.mark.parametrize("group", ["model", "sequence", "decode", "data", "callbacks"])
def test_no_key_of_a_group_is_declared_and_never_read(tmp_path: Path, group: str) -> None:
    source = BUILD + "".join((CONF.parent / "coordvlm" / name).read_text() for name in ("train.py", "eval.py"))
    cfg = compose(tmp_path)
    keys = {key for key, value in cfg[group].items() if not (OmegaConf.is_dict(value) and "_target_" in value)}
    unread = {key for key in keys if not re.search(rf"(\.|\"){key}\b", source)}
    assert unread <= {"name"}  # shown in reports


@pytest.mark.parametrize("name", sorted(p.stem for p in (CONF / "experiment").glob("*.yaml")))
def test_every_experiment_takes_a_step(tmp_path: Path, name: str) -> None:
    """On its real data where a test has it, else on a stand-in of its files; published models are tiny folders of their family."""
    text = (CONF / "experiment" / f"{name}.yaml").read_text()
    assert f"python -m coordvlm.train experiment={name}" in text
    assert "hardware:" in text
    small = ["data.batch_size=2", "data.eval_batch_size=2", "data.val_images=2", "data.num_workers=0", "trainer.max_steps=1",
             "trainer.val_check_interval=1", "trainer.accumulate_grad_batches=1"]
    if name in REAL:
        small += [f"data.root={peer_data() / REAL[name]}"]
    elif name == "foveated_caption_135m":
        small += [*write_small_video(tmp_path / "data")[1:], *write_parts(tmp_path / "model"), "model.num_frames=2"]
    elif preset := next((p for p in PRESETS if name.endswith(p)), None):
        folder = write_folder(tmp_path / "model", PRESETS[preset])
        small += [f"model.path={folder}", f"data.root={stand_in(tmp_path / 'data', name)}", "trainer=cpu", "model.resize.min_pixels=1024",
                  "model.resize.max_pixels=4096"]
        small += ["model.resize.size=[64,64]"] if "fixed" in text else []
    ran = call(tmp_path, "train", f"experiment={name}", *FAST, *small, page=False)
    assert ran.status == 0, ran.err
    assert ran.record["choices"]["experiment"] == name
    assert ran.record["status"] == "finished"


def stand_in(root: Path, name: str) -> Path:
    """Six coloured images in the layout of COCO 2017 or LVIS v1, five of RefCOCO's, some of FSC-147's."""
    if name.startswith("refcoco"):
        write_small_phrases("refcoco", root)
        return root
    if "fsc147" in name:
        write_small_points("fsc147", root)
        return root
    for split, data in (("train", coco.content()), ("val", coco.content(3, first_id=50))):
        coco.write(root / split, **{split: data})
        (root / f"{split}2017").mkdir()
        for image in data["images"]:
            (root / split / "images" / image["file_name"]).rename(root / f"{split}2017" / image["file_name"])
            if name.startswith("lvis"):
                image["coco_url"] = f"http://images.cocodataset.org/{split}2017/{image.pop('file_name')}"
        lvis = root / f"lvis_v1_{split}.json"
        file = lvis if name.startswith("lvis") else root / "annotations" / f"instances_{split}2017.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(data))
    return root


@pytest.mark.parametrize("coord_ce", ["true", "false"])
def test_geometry_without_decoded_coordinates_is_refused(tmp_path: Path, coord_ce: str) -> None:
    flags = (f"loss.use_coord_ce={coord_ce}", "loss.use_coordexp_loss=false", "loss.use_geom_loss=true")
    message = refusal(train(tmp_path, *FAST, "loss=ce", *flags))
    assert "loss.use_geom_loss=true needs loss.use_coordexp_loss=true" in message


@pytest.mark.parametrize(
    ("flags", "terms"),
    [
        ("000", {"text_ce"}), ("010", {"text_ce"}), ("011", {"text_ce", "gate", "l1", "giou"}), ("100", {"text_ce", "coord_ce"}),
        ("110", {"text_ce", "coord_ce"}), ("111", {"text_ce", "coord_ce", "l1", "giou"}),
    ],
)
@pytest.mark.parametrize("loss", ["ce", "hybrid"])
def test_flags_decide_whatever_recipe_they_start_from(tmp_path: Path, loss: str, flags: str, terms: set[str]) -> None:
    names = ("use_coord_ce", "use_coordexp_loss", "use_geom_loss")
    overrides = [f"loss.{name}={bool(int(flag))}".lower() for name, flag in zip(names, flags, strict=True)]
    cfg = compose(tmp_path, f"loss={loss}", *overrides)
    built = build.instantiate(cfg.loss)
    assert set(built.terms) == terms


def test_eval_is_composed() -> None:
    cfg = compose(Path("run"), "run=latest", root="eval")
    assert (cfg.split, cfg.run) == ("test", "latest")
    runs = [compose(Path("run")), compose(Path("run"), "data=dots"), compose(Path("run"), "data=grid_symbols")]
    assert set(cfg.decode) == {key for run in runs for key in run.decode}  # every setting of decoding can be changed afterwards
    assert set(cfg.metrics) == {key for run in runs for key in run.metrics} - {"_target_", "casefold", "coarse_weight", "fine_weight"}
