"""What a trained run can be asked to do otherwise."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from coordvlm.utils.errors import ConfigError
from coordvlm.utils.run_config import require_setting


def test_a_setting_of_another_task_is_refused_and_one_that_is_new_to_an_old_run_is_not() -> None:
    old = OmegaConf.create({"decode": {"readout": "argmax"}, "metrics": {"_target_": "x", "seed": 0}, "data": {}})
    for group, key in (("decode", "readout"), ("decode", "retries"), ("metrics", "seed"), ("data", "root")):
        require_setting(old, group, key)
    with pytest.raises(ConfigError, match=r"decode\.max_steps means nothing to this run, whose task is detect; its decode has readout"):
        require_setting(old, "decode", "max_steps")
    with pytest.raises(ConfigError, match=r"metrics\.any_unmarked .* its metrics has seed$"):
        require_setting(old, "metrics", "any_unmarked")
    counting = OmegaConf.create({"task": "count", "decode": {"max_steps": 5}, "metrics": {}})
    require_setting(counting, "decode", "max_steps")
    with pytest.raises(ConfigError, match=r"decode\.retries means nothing to this run, whose task is count"):
        require_setting(counting, "decode", "retries")
