"""Hydra's composition: from config folders and overrides to configs, one for a run and one for each point of a sweep.

Files are parsed once per `Composer`, so that the hundredth point of a sweep costs a merge and no YAML.
"""

from __future__ import annotations

import copy
import importlib.util
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import setup_globals
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from research_stack.config import hints
from research_stack.config.hints import UserError
from research_stack.config.packages import GROUP, conf_folders
from research_stack.config.why import Origins
from research_stack.records import paths
from research_stack.records.config_hash import flatten
from research_stack.records.paths import key_of, shown

CONFIG = "config"
#: Keys without which no command says what to do.
OF_EVERY_CONFIG = ("name", "task", "seed", "run", "runs", "prompt", "dry_run")


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


class PackageConfigs(SearchPathPlugin):
    """Has Hydra search the config folders of the packages opted into, behind the one that holds config.yaml."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the folders."""
        for folder in conf_folders():
            search_path.append(provider=GROUP, path=f"file://{folder.resolve()}")


def search_packages() -> None:
    """Have every composition of this process, Hydra's own too, search the packages opted into."""
    Plugins.instance().register(PackageConfigs)


class Composer:
    """Composes configs of config folders. Behind those given lie those of the packages opted into.

    - conf: the folder that holds config.yaml; the package's own by default.
    - extra: a further folder that is searched first (`--config-dir`).
    - last: folders that are searched last. A command's `hydra.searchpath` names more.
    """

    def __init__(
        self, conf: Path | None = None, extra: Path | None = None, config_name: str = CONFIG, last: Sequence[Path] = ()
    ) -> None:
        self.conf, self.config_name = Path(conf or paths.CONF).resolve(), config_name
        setup_globals()
        search_packages()
        search = create_config_search_path(str(self.conf))
        if extra is not None:
            search.prepend(
                provider="command-line", path=f"file://{extra.resolve()}", anchor=SearchPathQuery(provider="schema")
            )
        for folder in last:
            search.append(provider="command-line", path=f"file://{folder.resolve()}")
        self.loader = _Loader(search)
        behind = [folder.resolve() for folder in (*conf_folders(), *last)]
        self._given = [*([extra.resolve()] if extra else []), self.conf, *behind]
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


_of_job: ContextVar[tuple[Path | None, Path | None, tuple[Path, ...]]] = ContextVar("folders", default=(None, None, ()))


@contextmanager
def config_folders(conf: Path | None, extra: Path | None, last: Sequence[Path] = ()) -> Iterator[None]:
    """Where a job finds its configs, for what is composed while it runs (`job_composer`)."""
    token = _of_job.set((conf, extra, tuple(last)))
    try:
        yield
    finally:
        _of_job.reset(token)


def job_composer() -> Composer:
    """A composer of the folders of the job that runs: its first phase may be of a user's project."""
    conf, extra, last = _of_job.get()
    return Composer(conf, extra, last=last)
