"""From a command line to configs: one for a run, one per point for a sweep, one of a saved run.

`compose` is the same road from Python as `research-stack` is from a shell: the config comes back checked. Files
are parsed once per `Composer`, so that the hundredth point of a sweep costs a merge and no YAML.
"""

from __future__ import annotations

import copy
import importlib.util
import re
import shlex
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import setup_globals
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from research_stack.config import hints, moved_paths
from research_stack.config.hints import UserError
from research_stack.config.quoting import quoted, with_places
from research_stack.config.smoke import shrink
from research_stack.records import paths, provenance, redaction
from research_stack.records.config_hash import MAX_STEPS, differences, extension, flatten, is_hashed, is_movable_path
from research_stack.records.escaping import as_config, escaped
from research_stack.records.paths import key_of, known_runs, shown
from research_stack.records.run_folder import RunFolder, is_run

CONFIG = "config"
#: Tasks about a finished run, of which the command line changes little.
OF_A_RUN = ("eval", "sample", "export")
#: Top-level keys that they take from the command line; the rest is the saved run's.
OF_THE_COMMAND = (
    "task",
    "run",
    "eval",
    "sampler",
    "hardware",
    "prompt",
    "format",
    "logger",
    "dry_run",
    "seed",
    "launcher",
)
#: Keys that resuming a folder may add to the command without their being a config of its own.
OF_RESUMING = ("run", "task", "dry_run", "logger", "hardware", "callbacks", "launcher", "name")
#: Keys without which no command can be told what to do.
OF_EVERY_CONFIG = ("name", "task", "seed", "run", "runs", "prompt", "dry_run")
#: Checkpoints of a run; not the hidden `.tmp-...-best.ckpt` that a process leaves which is killed while it writes one
#: (`files.atomic_path`).
CHECKPOINTS = "[!.]*.ckpt"


class _Repository(CachingConfigRepository):
    """Parses each file once and hands out copies, since composing writes into what it is given."""

    def load_config(self, config_path: str) -> ConfigResult | None:
        return copy.deepcopy(super().load_config(config_path))


class _Loader(ConfigLoaderImpl):
    """Hydra's loader with one repository for all the compositions of a command."""

    kept: _Repository | None = None

    def _parse_overrides_and_create_caching_repo(
        self, config_name: str | None, overrides: list[str]
    ) -> tuple[list[Override], CachingConfigRepository]:
        parsed = OverridesParser.create().parse_overrides(overrides=overrides)
        if self.kept is None:
            self.kept = _Repository(self.repository)
            with warnings.catch_warnings(action="ignore"):  # of folders that are not there: an error here
                self._process_config_searchpath(config_name, parsed, self.kept)
            for source in self.kept.get_sources():
                if source.provider.startswith("hydra.searchpath") and not source.available():
                    raise UserError(f"hydra.searchpath: there is no folder {source.path}")
        return parsed, self.kept

    def searched(self) -> list[Path]:
        """The folders of `hydra.searchpath`, once something has been composed."""
        sources = self.kept.get_sources() if self.kept is not None else []
        found = [_folder_of(source) for source in sources if source.provider.startswith("hydra.searchpath")]
        return [folder for folder in found if folder is not None]


def _folder_of(source: ConfigSource) -> Path | None:
    """The folder of a config source: of files, or of a package that lies in one."""
    if source.scheme() == "file":
        return Path(source.path).resolve()
    spec = importlib.util.find_spec(source.path.replace("/", ".")) if source.scheme() == "pkg" else None
    return next(map(Path, spec.submodule_search_locations or ()), None) if spec is not None else None


@dataclass(frozen=True)
class Composed:
    """A composed config: the overrides that led to it, the job's part, and Hydra's own part.

    - saved: the config.yaml of the run it is of; None for a new run.
    """

    overrides: tuple[str, ...]
    cfg: DictConfig
    hydra: DictConfig
    saved: Path | None = None


class Composer:
    """Composes configs of one config folder.

    - conf: the folder that holds config.yaml; the package's own by default.
    - extra: a further folder that is searched first (`--config-dir`). `hydra.searchpath` names more: searched last.
    """

    def __init__(self, conf: Path | None = None, extra: Path | None = None, config_name: str = CONFIG) -> None:
        self.conf, self.config_name = Path(conf or paths.CONF).resolve(), config_name
        setup_globals()
        search = create_config_search_path(str(self.conf))
        if extra is not None:
            search.prepend(
                provider="command-line", path=f"file://{extra.resolve()}", anchor=SearchPathQuery(provider="schema")
            )
        self.loader = _Loader(search)
        self._given = [*([extra.resolve()] if extra else []), self.conf]
        self._bases: dict[tuple[str, ...], Composed] = {}

    @property
    def folders(self) -> list[Path]:
        """The config folders, in the order in which they are searched."""
        return list(dict.fromkeys([*self._given, *self.loader.searched()]))

    def search(self, overrides: Sequence[str]) -> None:
        """Take the `hydra.searchpath` of a command that composes nothing; UserError for a folder that is not there."""
        wanted = [o for o in overrides if key_of(o) == "hydra.searchpath"]
        with hints.explained(self, overrides):
            self.loader._parse_overrides_and_create_caching_repo(self.config_name, wanted)

    def load(self, overrides: Sequence[str], mode: RunMode = RunMode.RUN) -> DictConfig:
        """Hydra's composition, its `hydra` node included; raises Hydra's errors."""
        return self.loader.load_configuration(self.config_name, list(overrides), run_mode=mode)

    def compose(self, overrides: Sequence[str], mode: RunMode = RunMode.RUN) -> Composed:
        """The config of these overrides; UserError in one line for whatever is wrong with them or with a file."""
        for override in overrides:
            if override.lstrip("+~").startswith("="):
                raise UserError(f"'{override}' lacks a key before '='")
        with hints.explained(self, overrides):
            cfg = self.load(overrides, mode)
            hydra = cfg.hydra
            with open_dict(cfg):
                del cfg["hydra"]
        if lacking := [key for key in OF_EVERY_CONFIG if key not in cfg]:
            files = (folder / f"{self.config_name}.yaml" for folder in self.folders)
            file = next((f for f in files if f.is_file()), self.config_name)
            raise UserError(
                f"{shown(file)} lacks {', '.join(lacking)}: a config has the keys of "
                f"{shown(paths.CONF / 'config.yaml')}"
            )
        self._known_options(overrides)
        self._refuse_references_to_hydra(cfg, overrides)
        return Composed(tuple(overrides), cfg, hydra)

    def _known_options(self, overrides: Iterable[str]) -> None:
        """Raise UserError for an option there is none of: Hydra says nothing where the group is optional (sweep,
        debug).
        """
        for override in overrides:
            group, option = key_of(override), override.partition("=")[2].strip("'\"")
            options = self.groups().get(group, [])
            if options and option not in (*options, "null", "") and not re.search(r"[,(\[{]", option):
                raise UserError(hints.no_such_option(group, option, options, "command line"))

    def _refuse_references_to_hydra(self, cfg: DictConfig, overrides: Sequence[str]) -> None:
        """Raise UserError for `${hydra:...}` in the config of a run, which does not keep Hydra's own node."""
        from research_stack.config.why import Origins

        for key, value in flatten(OmegaConf.to_container(cfg)).items():
            if re.search(r"(?<!\\)\$\{hydra[:.]", str(value)):
                raise UserError(
                    f"{key}={value} refers to Hydra's own config, which a run does not keep: write "
                    "the value itself, or refer to a key of the config, as in ${model.dim} "
                    f"({Origins(self, overrides).where(key)})"
                )

    def compose_point(self, overrides: Sequence[str], hydra: Sequence[str] = ()) -> Composed:
        """As `compose`, for one of many: points that choose the same groups share one composition.

        Only the values differ then, and they are set on a copy by the function that Hydra itself uses.

        - hydra: overrides of Hydra's own keys, the same for all points.
        """
        with hints.explained(self, [*overrides, *hydra]):
            parsed = OverridesParser.create().parse_overrides(list(overrides))
            values = [
                o
                for o in parsed
                if isinstance(o.value(), dict) or not self.loader.repository.group_exists(o.key_or_group)
            ]
            groups = (*(str(o.input_line) for o in parsed if o not in values), *hydra)
            if groups not in self._bases:
                self._bases[groups] = self.compose(groups)
            base = self._bases[groups]
            cfg = copy.deepcopy(base.cfg)
            self.loader._apply_overrides_to_config(values, cfg)
            self._refuse_references_to_hydra(cfg, overrides)
            return Composed((*overrides, *hydra), cfg, base.hydra)

    def points(self, overrides: Sequence[str]) -> tuple[Composed, list[list[str]]]:
        """The master config of a sweep, and the overrides of each of its points in the order they will run."""
        master = self.compose(overrides, RunMode.MULTIRUN)
        sweeper = OmegaConf.to_container(master.hydra.sweeper, resolve=True)
        params = sweeper.get("params") or {}  # type: ignore[union-attr]
        arguments = [f"{k}={v}" for k, v in params.items()]
        with hints.explained(self, overrides):
            parser = OverridesParser.create(config_loader=self.loader)
            parsed = parser.parse_overrides([*arguments, *(o for o in overrides if not is_hydra(o))])
            batches = BasicSweeper.split_arguments(parsed, None)
        return master, [list(point) for batch in batches for point in batch]

    def swept(self, overrides: Sequence[str], master: Composed) -> list[str]:
        """The keys that are swept, of the command line and of the sweep group."""
        parsed = OverridesParser.create().parse_overrides([o for o in overrides if not is_hydra(o)])
        return [o.key_or_group for o in parsed if o.is_sweep_override()]

    def groups(self) -> dict[str, list[str]]:
        """{group: its options} of the config folders."""
        return paths.groups(self.folders)

    @cached_property
    def default(self) -> DictConfig | None:
        """The config without any overrides, for hints; None if even that cannot be composed."""
        try:
            return self.load([])
        except Exception:  # noqa: BLE001 - a hint about another error must not raise its own
            return None


def is_hydra(override: str) -> bool:
    """Whether the override is about Hydra itself."""
    return key_of(override).startswith(("hydra.", "hydra/"))


def compose(*overrides: str | Iterable[str], check: bool = True) -> DictConfig:
    """The config of the given overrides, as on the command line: `compose("model=small", "seed=3")`.

    - overrides: strings or lists of them, in Hydra's grammar.
    - check: also check every key and value against the constructors that will get them.

    Raises UserError (a ValueError) with one clear line: key, value, where it was set, nearest valid choice.
    """
    from research_stack.config.check import preflight

    flat = [o for part in overrides for o in ([part] if isinstance(part, str) else part)]
    composer = Composer()
    composed = settle(composer.compose(flat))
    if check:
        preflight([composed], composer)
    return composed.cfg


# Saved runs --------------------------------------------------------------------------------------------------------


def settle(composed: Composed) -> Composed:
    """The config a command really runs: with `run=FOLDER`, that of the saved run and what the command may change; with
    debug=smoke, made small.
    """
    cfg = composed.cfg
    if cfg.get("run") in (None, "new"):
        if cfg.get("task") in OF_A_RUN:
            newest = known_runs()
            raise UserError(
                f"task={cfg.task} needs run=FOLDER, a finished run"
                f"{f'; the newest is run={shlex.quote(shown(newest[0]))}' if newest else ''}"
            )
        if cfg.get("smoke"):
            shrink(cfg, composed.overrides)
        return composed
    saved = RunFolder(str(cfg.run)).config_yaml
    return Composed(composed.overrides, of_saved_run(cfg, composed.overrides), composed.hydra, saved)


def for_run(folder: str | Path, overrides: Sequence[str] = (), task: str = "eval") -> DictConfig:
    """The config of a saved run with the nodes the overrides name: `for_run(result.folder, ["sampler=llada"])`.

    The same as `task=eval run=FOLDER ...` on the command line, with the same checks. Raises UserError.
    """
    from research_stack.config.check import preflight

    composer = Composer()
    composed = settle(composer.compose([*with_places(overrides), f"run={quoted(folder)}", f"task={task}"]))
    preflight([composed], composer)
    return composed.cfg


def of_saved_run(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The saved config of the folder `cfg.run`, changed as the command line says.

    - task=eval, task=sample, task=export: nodes of OF_THE_COMMAND that the command names replace the saved ones; any
      other key on the command line is refused, but for places (`data.path=...`) of what has moved.
    - task=train: the run goes on with its own config. A command that says only `run=FOLDER` needs no more, and
      `trainer.max_steps=N` beside it makes the run longer; one that leads to another config is refused with the keys
      that differ, the typed ones first.

    Relative paths of the run are those of where it was started. Raises UserError if the folder is no run.
    """
    folder = run_folder(str(cfg.run))
    said = [o for o in overrides if not is_hydra(o)]
    places = {key_of(o): OmegaConf.select(cfg, key_of(o)) for o in said if is_movable_path(key_of(o))}
    moved = moved_paths.moved(folder.read_config(), places, folder)
    saved, said = _given_again(moved, cfg, [o for o in said if key_of(o) not in places])
    named = {key_of(o).split(".")[0].split("/")[0]: o for o in said}
    if cfg.task in OF_A_RUN:
        trained(folder)
    sound_checkpoint(folder)
    provenance.refuse_edited(folder)
    if cfg.task not in OF_A_RUN:
        keys = {key_of(o) for o in said}
        if all(_of_resuming(key) for key in keys):
            return _with_nodes(saved, cfg, said)
        _refuse_another(folder, saved, cfg, sorted(keys))
        return cfg
    for key, override in named.items():
        if key not in OF_THE_COMMAND:
            raise UserError(
                f"{override} cannot be set with task={cfg.task}: the run's own config says it; "
                f"the command line may set {', '.join(OF_THE_COMMAND)} ({shown(folder.config_yaml)})"
            )
    return _with_nodes(saved, cfg, said)


def _given_again(saved: dict[str, Any], cfg: DictConfig, overrides: Sequence[str]) -> tuple[DictConfig, list[str]]:
    """The saved config with the masked values that the command gives again, and the other overrides."""
    texts, lost, rest = dict(redaction.leaves(saved)), {}, []
    for override in overrides:
        text, value = texts.get(key_of(override), ""), OmegaConf.select(cfg, key_of(override))
        if redaction.MASKED in text and isinstance(value, str):
            lost |= {path: value for path, other in texts.items() if other == text}  # what copied it was masked alike
        else:
            rest.append(override)
    return as_config(redaction.filled(saved, lost)), rest


def _of_resuming(key: str) -> bool:
    """Whether a key may stand beside `run=FOLDER` without the rest of the run's config."""
    if key.startswith("trainer."):
        return key == MAX_STEPS or not is_hashed(key)
    return key.split(".")[0].split("/")[0] in OF_RESUMING


def _with_nodes(saved: DictConfig, cfg: DictConfig, overrides: Iterable[str]) -> DictConfig:
    """The saved config with what these overrides set in the new one: whole nodes for groups, else single keys."""
    merged = OmegaConf.create(OmegaConf.to_container(saved))
    resolved = as_config(OmegaConf.to_container(cfg, resolve=True))
    own = [key for key in ("run", "task", "dry_run", "prompt", "format") if key in resolved]
    for key in (*own, *map(key_of, overrides)):
        key = "hardware" if key == "launcher" else key
        value = OmegaConf.select(resolved, key)
        plain = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        OmegaConf.update(merged, key, escaped(plain), merge=False, force_add=True)
    return merged


def _refuse_another(folder: RunFolder, saved: DictConfig, cfg: DictConfig, typed: Sequence[str]) -> None:
    """Raise UserError for another config, but for one that makes the run longer."""
    said = differences(saved, cfg, typed)
    if said and extension(saved, cfg) is None:
        run = f"run={shlex.quote(shown(folder.path))}"
        raise UserError(
            f"{run} was started with another config ({said}); give the same overrides, or only {run} to go on with its"
            f" own, and {MAX_STEPS}=N to make it longer"
        )


def run_folder(path: str) -> RunFolder:
    """The run folder at the path; UserError with the nearest runs if it is none."""
    folder = RunFolder(Path(path))
    if is_run(folder):
        return folder
    why = "no such folder" if not folder.path.exists() else "has no config.yaml and run.json"
    if folder.path.is_file():
        why = "is a file"
    below = sorted({p.parent for p in folder.path.glob("*/run.json")}) if folder.path.is_dir() else []
    near = [shown(p) for p in below] or hints.nearest(path, [shown(p) for p in known_runs()], cutoff=0.0)
    raise UserError(f"run={path} is no run folder ({why}){hints.choices(near[:3], 'the nearest runs are')}")


def trained(folder: RunFolder) -> None:
    """Raise UserError if the run has no checkpoint."""
    if not any(folder.checkpoints.glob(CHECKPOINTS)):
        raise UserError(f"run={shown(folder.path)} has no checkpoint in {shown(folder.checkpoints)}")


def sound_checkpoint(folder: RunFolder, advice: str = "") -> None:
    """Raise UserError for a checkpoint of the run that was cut off: the end of the file is read, no more."""
    import zipfile

    for path in sorted(p for p in folder.checkpoints.glob(CHECKPOINTS) if p.is_file()):
        if not zipfile.is_zipfile(path):
            raise UserError(
                f"{shown(path)} is no whole checkpoint ({path.stat().st_size} bytes; the file is truncated or"
                f" damaged){advice}"
            )
