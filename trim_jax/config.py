"""Configuration: plain Python files with a `get_config()`, changed by typed flags.

A config file is a Python file whose `get_config()` returns an `ml_collections.ConfigDict`. Three
things next to the fields are read from the same file, so that nothing is said twice:

- the comment above (or behind) `config.section.field = default` is the field's help text;
- `RANGES = {"section.field": (least, most)}` bounds a number, or every number of a tuple
  (inclusive, `None` = no bound on that side);
- `CHOICES = {"section.field": ("a", "b")}` lists the only values allowed.

`DISTINCT` of `configs/base.py` names tuples that must hold something, and nothing twice.

A field made with `ml_collections.config_dict.placeholder(type)` or `FieldReference(default)` may
also be `none`. Every refusal is a `ConfigError` that names the field as it is typed.
"""

import ast
import contextlib
import difflib
import importlib
import importlib.util
import io
import json
import math
import sys
import textwrap
import tokenize
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference

from trim_jax.errors import ConfigError

FLAG = "--config."
_PACKAGE = "trim_jax.configs"


def load_config(path_or_name: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Loads a config file, applies typed overrides, checks every value, and locks the result.

    Args:
        path_or_name: A path that ends in `.py`, or the bare name of an installed config (`sweep`).
        overrides: `--config.section.field=value`, as typed; the last one wins.

    Raises:
        ConfigError: The file cannot be loaded, a field is unknown, or a value is of the wrong type
            or out of range.
    """
    module = load_module(path_or_name)
    config = _call_get_config(module)
    comments = field_comments(module)
    for override in overrides:
        _apply(config, override, comments)
    _check_values(config, module, comments)
    return config.lock()


def load_module(path_or_name: str) -> ModuleType:
    """Imports a config file by path or by bare name; `describe` turns the module into help text."""
    if not path_or_name.endswith(".py"):
        return _load_installed(path_or_name)
    path = Path(path_or_name)
    if not path.is_file():
        names = config_names()
        raise ConfigError(f"no config file {path}; installed ones: {', '.join(names)} "
                          f"(give the bare name, as in --config {_nearest(path.stem, names)})")
    _ensure_configs_package()
    spec = importlib.util.spec_from_file_location(f"trim_jax_user_config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    with _blamed_on(path):
        spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"{path}: defines no get_config()")
    return module


def config_names() -> list[str]:
    """The bare names that `--config` accepts, sorted."""
    folder = Path(_ensure_configs_package().__file__).parent
    return sorted(p.stem for p in folder.glob("*.py") if p.stem not in ("__init__", "base"))


def _load_installed(name: str) -> ModuleType:
    if name not in config_names():
        nearest = _nearest(name, config_names())
        raise ConfigError(f"no config named {name!r}: did you mean {nearest}? "
                          f"(installed: {', '.join(config_names())}; a path ends in .py)")
    return importlib.import_module(f"{_PACKAGE}.{name}")


def _ensure_configs_package() -> ModuleType:
    """Imports `trim_jax.configs`, which a checkout that is not installed has only as ../configs."""
    try:
        return importlib.import_module(_PACKAGE)
    except ModuleNotFoundError:
        init = Path(__file__).parent.parent / "configs" / "__init__.py"
        if not init.is_file():
            raise
    spec = importlib.util.spec_from_file_location(
        _PACKAGE, init, submodule_search_locations=[str(init.parent)])
    module = importlib.util.module_from_spec(spec)
    sys.modules[_PACKAGE] = module
    spec.loader.exec_module(module)
    return module


def _call_get_config(module: ModuleType) -> ConfigDict:
    path = Path(module.__file__)
    with _blamed_on(path):
        config = module.get_config()
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"{path}: get_config() returns {type(config).__name__}, not a ConfigDict")
    return config


@contextlib.contextmanager
def _blamed_on(path: Path) -> Iterator[None]:
    """Turns whatever the config file at `path` raises into a `ConfigError` with its line."""
    try:
        yield
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == path]
        line = f"line {frames[-1].lineno}: " if frames else ""
        raise ConfigError(f"{path}: {line}{type(error).__name__}: {error}") from error


# ---- Fields ----


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """All fields as {"section.field": value}; tuples become lists, as in JSON."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, (ConfigDict, Mapping)):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def to_json(config: ConfigDict | Mapping[str, Any]) -> str:
    """The canonical text of a config: sorted keys, full precision, equal bytes if equal values."""
    plain = config.to_dict() if isinstance(config, ConfigDict) else config
    return json.dumps(plain, sort_keys=True, indent=2, allow_nan=False) + "\n"


def diff_configs(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Names the fields in which config `a` (here) and config `b` (in the folder) differ, sorted."""
    here, there = flatten(a), flatten(b)
    lines = []
    for name in sorted(here.keys() | there.keys()):
        if name not in there:
            lines.append(f"{name}: {json.dumps(here[name])} here, absent in the folder")
        elif name not in here:
            lines.append(f"{name}: absent here, {json.dumps(there[name])} in the folder")
        elif here[name] != there[name]:
            lines.append(f"{name}: {json.dumps(here[name])} here, "
                         f"{json.dumps(there[name])} in the folder")
    return lines


def field_comments(module: ModuleType) -> dict[str, str]:
    """The comment of every field and section, from `configs/base.py` and then the module itself."""
    base = importlib.import_module(f"{_ensure_configs_package().__name__}.base")
    comments = {}
    for source in (base, module):
        comments.update(_comments_in(Path(source.__file__).read_text(encoding="utf-8")))
    return comments


def _comments_in(source: str) -> dict[str, str]:
    """{"section.field": comment} for every `config.section.field = ...` that has a comment."""
    alone, trailing = {}, {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            by_line = trailing if token.line[:token.start[1]].strip() else alone
            by_line[token.start[0]] = token.string.lstrip("# ").rstrip()
    comments = {}
    for node in ast.walk(ast.parse(source)):
        name = _assigned_field(node)
        if name:
            lines = []
            above = node.lineno - 1
            while above in alone:
                lines.insert(0, alone[above])
                above -= 1
            if node.end_lineno in trailing:
                lines.append(trailing[node.end_lineno])
            if lines:
                comments[name] = " ".join(lines)
    return comments


def _assigned_field(node: ast.AST) -> str | None:
    """`section.field` for the statement `config.section.field = ...`, else None."""
    if not (isinstance(node, ast.Assign) and len(node.targets) == 1):
        return None
    target, parts = node.targets[0], []
    while isinstance(target, ast.Attribute):
        parts.insert(0, target.attr)
        target = target.value
    return ".".join(parts) if parts and isinstance(target, ast.Name) else None


def describe(module: ModuleType) -> str:
    """Help text of a config: its purpose, then every field with default, kind and comment."""
    config, comments = _call_get_config(module), field_comments(module)
    lines = []
    if module.__doc__:
        lines += [module.__doc__.strip(), ""]
    lines += ["Fields, with their defaults. Change any of them with --config.FIELD=VALUE.", ""]
    sections: dict[str, list[str]] = {"": []}
    for name in sorted(flatten(config), key=[*comments, *flatten(config)].index):  # as in the file
        sections.setdefault(name.rpartition(".")[0], []).append(name)
    for section, names in sections.items():
        lines += ["", comments.get(section, section)] if section else []
        for name in names:
            lines += _describe_field(name, config, module, comments)
    return "\n".join(lines) + "\n"


def _describe_field(name: str, config: ConfigDict, module: ModuleType,
                    comments: Mapping[str, str]) -> list[str]:
    kind, optional = _kind_of(config, name)
    note = _expected(kind, optional)
    if _table(module, "CHOICES").get(name):
        note = "one of " + ", ".join(_table(module, "CHOICES")[name])
    elif _table(module, "RANGES").get(name):
        note += ", " + _range_text(*_table(module, "RANGES")[name])
    text = f"{comments.get(name, '(no comment)')} [{note}]"
    return [f"  {FLAG}{name}={_show(_get(config, name))}",
            *textwrap.wrap(text, 92, initial_indent=" " * 8, subsequent_indent=" " * 8)]


# ---- Overrides ----


def _apply(config: ConfigDict, override: str, comments: Mapping[str, str]) -> None:
    """Sets one field of `config` from the text `--config.section.field=value`."""
    name, equals, text = override.removeprefix(FLAG).partition("=")
    if not override.startswith(FLAG) or not equals or not name:
        raise ConfigError(f"cannot read {override!r}: a field is set as {FLAG}section.field=value")
    names = list(flatten(config))
    if name not in names and f"{name}.name" in names:
        name = f"{name}.name"  # --config.policy=thr is short for --config.policy.name=thr
    inside = [n for n in names if n.startswith(f"{name}.")]
    if inside:
        raise ConfigError(f"{FLAG}{name} is a section; set one of its fields: {', '.join(inside)}")
    if name not in names:
        raise ConfigError(f"unknown field {FLAG}{name}: did you mean "
                          f"{FLAG}{_nearest(name, names)}? (--help lists every field)")
    kind, optional = _kind_of(config, name)
    try:
        value = _parse(text, kind, optional)
    except ValueError:
        raise ConfigError(f"{FLAG}{name}={text}: expected {_expected(kind, optional)}, such as the "
                          f"default {_show(_get(config, name))}. {comments.get(name, '')}".rstrip()
                          ) from None
    section, _, field = name.rpartition(".")
    owner = _get(config, section) if section else config
    with owner.unlocked():
        owner[field] = value


def _nearest(name: str, names: Sequence[str]) -> str:
    """The valid name nearest to `name`; one that ends in the same field beats similar spelling."""
    field = name.rpartition(".")[2]
    pool = [n for n in names if n.rpartition(".")[2] == field] or names
    return difflib.get_close_matches(name, pool, n=1, cutoff=0.0)[0]


def _get(config: ConfigDict, name: str) -> Any:
    for part in name.split("."):
        config = config[part]
    return config


def _kind_of(config: ConfigDict, name: str) -> tuple[type | tuple[type], bool]:
    """The type of a field ((element type,) for a sequence), and whether it may be None."""
    section, _, field = name.rpartition(".")
    owner = _get(config, section) if section else config
    raw = dict(owner.items(preserve_field_references=True))[field]
    if isinstance(raw, FieldReference):
        return raw.get_type(), True
    if isinstance(raw, (tuple, list)):
        kinds = {type(v) for v in raw} or {float}
        return ((float,) if kinds == {int, float} else (kinds.pop(),)), False
    return type(raw), False


def _parse(text: str, kind: type | tuple[type], optional: bool) -> Any:
    """The value that `text` stands for.

    Raises:
        ValueError: It does not stand for a value of this kind.
    """
    if optional and text.strip().lower() == "none":
        return None
    if isinstance(kind, tuple):
        inner = text.strip()
        if inner[:1] + inner[-1:] in ("()", "[]"):
            inner = inner[1:-1]
        inner = inner.strip().removesuffix(",")
        parts = [p.strip().strip("'\"") for p in inner.split(",")] if inner else []
        return tuple(_parse(p, kind[0], False) for p in parts)
    if kind is bool:
        try:
            return {"true": True, "1": True, "false": False, "0": False}[text.strip().lower()]
        except KeyError:
            raise ValueError(text) from None
    return kind(text)


def _expected(kind: type | tuple[type], optional: bool) -> str:
    one = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    many = {int: "whole numbers", float: "numbers", str: "words"}
    text = f"{many[kind[0]]} separated by commas" if isinstance(kind, tuple) else one[kind]
    return text + (", or none" if optional else "")


def _show(value: Any) -> str:
    """A value as one would type it on the command line."""
    if isinstance(value, (tuple, list)):
        return ",".join(_show(v) for v in value)
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return str(value) if value != "" else '""'


# ---- Checks ----


def _table(module: ModuleType, name: str) -> dict[str, tuple]:
    """`RANGES` or `CHOICES` of `configs/base.py`, with what the config file itself adds."""
    base = importlib.import_module(f"{_PACKAGE}.base")
    return {**getattr(base, name, {}), **getattr(module, name, {})}


def _range_text(least: float | None, most: float | None) -> str:
    if most is None:
        return f"at least {least}"
    return f"at most {most}" if least is None else f"{least} to {most}"


def _check_values(config: ConfigDict, module: ModuleType, comments: Mapping[str, str]) -> None:
    """Refuses values that JSON cannot hold, that are out of range, or not among the choices."""
    ranges, choices = _table(module, "RANGES"), _table(module, "CHOICES")
    distinct = importlib.import_module(f"{_PACKAGE}.base").DISTINCT
    for name, value in flatten(config).items():
        if name in distinct and not (value and len(set(value)) == len(value)):
            raise ConfigError(f"{FLAG}{name}={_show(value)}: must name at least one, and none twice. "
                              f"{comments.get(name, '')}".rstrip())
        for item in value if isinstance(value, list) else [value]:
            problem = None
            if not isinstance(item, (bool, int, float, str, type(None))):
                problem = f"a field cannot hold a {type(item).__name__}"
            elif isinstance(item, float) and not math.isfinite(item):
                problem = "must be a finite number"
            elif name in choices and item not in choices[name]:
                problem = "must be one of " + ", ".join(map(str, choices[name]))
            elif item is not None and name in ranges:
                least, most = ranges[name]
                if not ((least is None or item >= least) and (most is None or item <= most)):
                    problem = f"must be {_range_text(least, most)}"
            if problem:
                raise ConfigError(f"{FLAG}{name}={_show(value)}: {problem}. "
                                  f"{comments.get(name, '')}".rstrip())
