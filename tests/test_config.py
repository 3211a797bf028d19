"""Configs: typed overrides, refusals that name the nearest field, help text, canonical form."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from trim_jax import config as config_lib
from trim_jax.config import describe, diff_configs, flatten, load_config, load_module, to_json
from trim_jax.errors import ConfigError

NAMES = ["ablation", "ablation_prm", "bench", "budget", "collect", "recorded", "solve", "study",
         "study_quick", "sweep", "train_large", "train_prm", "train_prm_noisy", "train_prm_small",
         "train_small"]


def value_of(override: str, name: str, config: str = "sweep"):
    return flatten(load_config(config, [override]))[name]


def test_every_shipped_config_loads_by_name_and_by_path():
    assert config_lib.config_names() == NAMES
    for name in NAMES:
        module = load_module(name)
        by_path = load_config(module.__file__)
        assert to_json(load_config(name)) == to_json(by_path)
        assert by_path.is_locked


def test_no_command_writes_where_kept_results_are_by_default():
    root = Path(__file__).parent.parent
    done = subprocess.run(["git", "ls-files", "results"], cwd=root, capture_output=True, text=True)
    if done.returncode or not done.stdout:
        pytest.skip("not a git checkout")
    kept = {"/".join(line.split("/")[:2]) for line in done.stdout.splitlines()}
    configs = [load_config(name) for name in NAMES]
    outs = {config.out for config in configs if "out" in config}
    assert len(outs) > 8 and outs & kept == set()


@pytest.mark.parametrize("override, name, expected", [
    ("--config.policy.threshold=0.4", "policy.threshold", 0.4),
    ("--config.policy.threshold=1", "policy.threshold", 1.0),
    ("--config.policy.threshold=4e-1", "policy.threshold", 0.4),
    ("--config.engine.slots=32", "engine.slots", 32),
    ("--config.seeds=7", "seeds", [7]),
    ("--config.seeds=[1, 2]", "seeds", [1, 2]),
    ("--config.seeds=(1,)", "seeds", [1]),
    ("--config.sweep.thresholds=0.1,0.2", "sweep.thresholds", [0.1, 0.2]),
    ("--config.sweep.thresholds=0,1", "sweep.thresholds", [0.0, 1.0]),
    ("--config.sweep.thresholds=[]", "sweep.thresholds", []),
    ("--config.sweep.oracle=False", "sweep.oracle", False),
    ("--config.sweep.oracle=1", "sweep.oracle", True),
    ("--config.data.limit=none", "data.limit", None),
    ("--config.data.limit=20", "data.limit", 20),
    ("--config.out=a=b, c", "out", "a=b, c"),
    ("--config.data.instruction=", "data.instruction", ""),
    ("--config.policy=my_module:make_policy", "policy.name", "my_module:make_policy"),
])
def test_override_is_parsed_by_the_type_of_the_default(override, name, expected):
    value = value_of(override, name)
    assert value == expected
    flat = [value, *value] if isinstance(value, list) else [value]
    wanted = [expected, *expected] if isinstance(expected, list) else [expected]
    assert [type(v) for v in flat] == [type(v) for v in wanted]


@pytest.mark.parametrize("name", NAMES)
def test_the_shown_default_of_every_field_can_be_typed_back(name):
    defaults = load_config(name)
    shown = re.findall(r"^  (--config\.\S+?=.*)$", describe(load_module(name)), re.MULTILINE)
    assert len(shown) == len(flatten(defaults))
    typed = [line.removesuffix('""') for line in shown]
    assert to_json(load_config(name, typed)) == to_json(defaults)


def test_the_last_of_two_overrides_wins():
    config = load_config("sweep", ["--config.engine.slots=2", "--config.engine.slots=4"])
    assert config.engine.slots == 4


@pytest.mark.parametrize("override, parts", [
    ("--config.policy.treshold=0.4", ["policy.treshold", "did you mean --config.policy.threshold"]),
    ("--config.threshold=0.4", ["did you mean --config.policy.threshold"]),
    ("--config.plicy.threshold=0.4", ["did you mean --config.policy.threshold"]),
    ("--config.seed=1", ["did you mean --config.seeds"]),
    ("--config.sampling=0.4", ["section", "sampling.temperature", "sampling.top_p"]),
    ("--config.policy.threshold=high", ["policy.threshold=high", "a number", "0.5", "rewrites"]),
    ("--config.engine.slots=1.5", ["engine.slots=1.5", "a whole number", "512", "memory"]),
    ("--config.data.limit=all", ["a whole number, or none", "Only the first"]),
    ("--config.seeds=", ["--config.seeds=", "at least one, and none twice"]),
    ("--config.seeds=0,1,0", ["--config.seeds=0,1,0", "at least one, and none twice"]),
    ("--config.seeds=1,x", ["whole numbers separated by commas", "0,1,2"]),
    ("--config.sweep.oracle=maybe", ["true or false"]),
    ("--config.policy.threshold=", ["a number"]),
    ("--config.policy.threshold=1.5", ["policy.threshold=1.5", "0.0 to 1.0", "rewrites"]),
    ("--config.policy.threshold=-0.1", ["0.0 to 1.0"]),
    ("--config.sweep.thresholds=0.5,1.5", ["sweep.thresholds=0.5,1.5", "0.0 to 1.0"]),
    ("--config.policy.threshold=nan", ["finite"]),
    ("--config.policy.threshold=inf", ["finite"]),
    ("--config.data.limit=0", ["at least 1"]),
    ("--config.engine.dtype=float16", ["one of float32, bfloat16"]),
    ("--config.policy.threshold", ["--config.policy.threshold", "--config.section.field=value"]),
    ("--policy.threshold=0.4", ["--config.section.field=value"]),
    ("--config.=1", ["--config.section.field=value"]),
])
def test_bad_override_is_refused_and_the_message_helps(override, parts):
    with pytest.raises(ConfigError) as error:
        load_config("sweep", [override])
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize("name, parts", [
    ("swep", ["'swep'", "did you mean sweep", "train_prm"]),
    ("configs/swep.py", ["configs/swep.py", "--config sweep"]),
    ("base", ["'base'", "installed"]),
])
def test_missing_config_names_the_nearest(name, parts):
    with pytest.raises(ConfigError) as error:
        load_config(name)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize("body, parts", [
    ("def get_config(:", ["mine.py", "SyntaxError"]),
    ("x = 1", ["mine.py", "get_config"]),
    ("def get_config():\n    return {'a': 1}", ["mine.py", "dict", "ConfigDict"]),
    ("from trim_jax.configs import base\ndef get_config():\n    config = base.get_config()\n"
     "    config.policy.threshold = 'x'\n    return config", ["mine.py", "line 4", "threshold"]),
    ("from trim_jax.configs import base\ndef get_config():\n    config = base.get_config()\n"
     "    config.policy.threshold = 2.0\n    return config", ["threshold=2.0", "0.0 to 1.0"]),
    ("from trim_jax.configs import base\ndef get_config():\n    config = base.get_config()\n"
     "    config.new = float('nan')\n    return config", ["new=nan", "finite"]),
    ("from ml_collections import ConfigDict\ndef get_config():\n"
     "    return ConfigDict({'f': object})", ["f=", "cannot hold"]),
])
def test_broken_config_file_is_one_clear_error(tmp_path, body, parts):
    (tmp_path / "mine.py").write_text(body)
    with pytest.raises(ConfigError) as error:
        load_config(str(tmp_path / "mine.py"))
    for part in parts:
        assert part in str(error.value)


def test_own_config_file_adds_fields_with_comments_ranges_and_choices(tmp_path):
    (tmp_path / "mine.py").write_text("""'''My study.'''
from trim_jax.configs import base

def get_config():
    config = base.get_config()
    # The price of a strong token,
    # in points of accuracy.
    config.policy.price = 0.1
    config.colour = "red"  # of the curve
    return config

RANGES = {"policy.price": (None, 0.5)}
CHOICES = {"colour": ("red", "blue")}
""")
    path = str(tmp_path / "mine.py")
    text = describe(load_module(path))
    assert text.startswith("My study.")
    assert text.index("--config.policy.price") < text.index("What a sweep compares.")
    assert ("  --config.policy.price=0.1\n        The price of a strong token, in points of "
            "accuracy. [a number, at most 0.5]\n") in text
    assert "  --config.colour=red\n        of the curve [one of red, blue]\n" in text
    assert load_config(path, ["--config.policy.price=-3"]).policy.price == -3.0
    with pytest.raises(ConfigError, match="at most 0.5. The price of a strong token, in points"):
        load_config(path, ["--config.policy.price=0.6"])
    with pytest.raises(ConfigError, match="one of red, blue. of the curve"):
        load_config(path, ["--config.colour=green"])


@pytest.mark.parametrize("name", NAMES)
def test_every_field_of_every_config_has_a_comment_and_every_bound_a_field(name):
    module = load_module(name)
    fields = flatten(load_config(name))
    comments = config_lib.field_comments(module)
    sections = {field.partition(".")[0] for field in fields if "." in field}
    assert not [field for field in [*fields, *sections] if not comments.get(field)]
    assert not [field for table in ("RANGES", "CHOICES") for field in getattr(module, table, {})
                if field not in fields]
    assert "(no comment)" not in describe(module)


def test_every_bound_in_base_belongs_to_a_field():
    base = sys.modules["trim_jax.configs.base"]
    whole = base.get_config()
    base.add_training(whole)
    base.add_language_model(whole)
    base.add_reward_model(whole)
    base.add_study(whole)
    base.add_reward_model(whole)
    fields = flatten(whole)
    assert {*base.RANGES, *base.CHOICES} <= fields.keys()
    assert "policy.threshold" in base.RANGES


def test_help_names_fields_in_the_order_of_the_file_with_their_section():
    text = describe(load_module("sweep"))
    places = [text.index(line) for line in (
        "\n  --config.out=", "\nThe three models.\n", "\n  --config.trio.small=",
        "\n  --config.policy.threshold=0.5\n")]
    assert places == sorted(places)
    assert text.count("\nThe three models.\n") == 1


def test_json_is_canonical_and_exact():
    a = ConfigDict({"b": (1, 2), "a": {"y": 0.1 + 0.2, "x": None}})
    b = ConfigDict({"a": {"x": None, "y": 0.1 + 0.2}, "b": (1, 2)})
    assert to_json(a) == to_json(b)
    assert json.loads(to_json(a)) == {"a": {"x": None, "y": 0.1 + 0.2}, "b": [1, 2]}


def test_diff_names_every_differing_field():
    here = load_config("sweep", ["--config.policy.threshold=0.4", "--config.seeds=1"])
    there = json.loads(to_json(load_config("sweep")))
    there["old"] = "x"
    del there["sampling"]["top_k"]
    assert diff_configs(here, there) == [
        'old: absent here, "x" in the folder',
        "policy.threshold: 0.4 here, 0.5 in the folder",
        "sampling.top_k: 20 here, absent in the folder",
        "seeds: [1] here, [0, 1, 2] in the folder",
    ]
    assert diff_configs(here, json.loads(to_json(here))) == []


def test_importing_the_package_and_its_configs_does_not_import_jax():
    program = ("import sys, trim_jax, trim_jax.config, trim_jax.results\n"
               "trim_jax.config.describe(trim_jax.config.load_module('sweep'))\n"
               "assert 'jax' not in sys.modules\n"
               "trim_jax.TrimError\n"
               "assert {'route', 'load_trio', 'Problem'} <= set(dir(trim_jax))\n"
               "try: trim_jax.nothing\n"
               "except AttributeError as error: assert 'nothing' in str(error)\n"
               "else: raise SystemExit('no AttributeError')\n")
    subprocess.run([sys.executable, "-c", program], check=True)
