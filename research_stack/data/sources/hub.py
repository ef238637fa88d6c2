"""Documents of a data set that `datasets` can load: from the hub by name, or from a local folder. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

from research_stack.data.sources.base import PAIRS, Document
from research_stack.data.sources.record_reader import OddRecords, nearest
from research_stack.data.sources.text import document_of, lenient
from research_stack.records.paths import expanded
from research_stack.require import require

BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}


class Hub:
    """A data set by name on the Hugging Face hub, or a local one.

    - path: `owner/name` on the hub, a folder that `save_to_disk` wrote, a folder of data files, or one data file.
    - name: configuration of the data set; null for its default.
    - split: which of its splits is the corpus; train and validation are then split from it by document.
    - field: the text; of pairs, the response. prompt_field: the prompt; null for plain text.
    - revision: commit or tag on the hub; null for the newest.
    - limit: keep only the first so many records; null for all.
    - strict: an odd record is an error; False leaves it out and counts it.
    """

    def __init__(
        self,
        path: str,
        name: str | None = None,
        split: str = "train",
        field: str = "text",
        prompt_field: str | None = None,
        revision: str | None = None,
        limit: int | None = None,
        strict: bool = True,
    ) -> None:
        require(limit is None or limit > 1, f"limit={limit} must be at least 2, or null for all records")
        self.path, self.name, self.split, self.field = path, name, split, field
        self.prompt_field, self.revision, self.limit = prompt_field, revision, limit
        self.odd = OddRecords(strict)

    def check(self) -> None:
        """Raise FileNotFoundError when a path that can only be local does not exist; a name is looked up later."""
        path = expanded(self.path)
        if path.exists():
            if path.is_file() and path.suffix not in BUILDERS:
                raise ValueError(
                    f"path={self.path} has the unknown suffix '{path.suffix}'; known: {' '.join(BUILDERS)}"
                )
            if path.is_dir() and not any(path.iterdir()):
                raise ValueError(f"path={self.path} is an empty folder")
        elif (
            path.is_absolute()
            or self.path.startswith((".", "~"))
            or self.path.count("/") > 1
            or path.suffix in BUILDERS
        ):
            raise FileNotFoundError(f"path={self.path} does not exist{nearest(path)}")

    @cached_property
    def _data(self) -> Any:
        """The `datasets.Dataset`. Raises ValueError or OSError in one line."""
        import datasets
        from datasets.exceptions import DatasetsError

        path = expanded(self.path)
        try:
            if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
                loaded = datasets.load_from_disk(str(path))
            elif path.is_file():
                loaded = datasets.load_dataset(BUILDERS[path.suffix], data_files={self.split: str(path)})
            else:
                loaded = datasets.load_dataset(self.path, self.name, revision=self.revision)
        except ConnectionError as error:
            raise OSError(f"path={self.path} cannot be had from the hub: {_first_line(error)}") from error
        except (FileNotFoundError, ValueError, RuntimeError, DatasetsError) as error:
            raise ValueError(f"path={self.path} cannot be loaded: {_first_line(error)}") from error
        if isinstance(loaded, datasets.Dataset):
            return loaded
        if self.split not in loaded:
            raise ValueError(f"source.split={self.split} is not among the splits {', '.join(map(str, loaded))}")
        return loaded[self.split]

    def documents(self) -> Iterator[Document]:
        """The records, in order. Raises ValueError when a field is missing or holds no text."""
        self.odd.restart()
        records = self._data if self.limit is None else self._data.select(range(min(self.limit, len(self._data))))
        for row, record in enumerate(records):
            self.odd.read += 1
            document = None
            with self.odd:
                document = document_of(record, self.field, self.prompt_field, f"{self.path}:row {row}")
            if document is not None and document.text.strip():
                yield document
            self.odd.blank += document is not None and not document.text.strip()

    def fingerprint(self) -> str:
        """The fingerprint that `datasets` keeps of the data, and the options."""
        options = (
            f"{self.split}-{self.field}-{self.prompt_field}-{self.limit}{lenient(self.odd)}"
            f"{'' if self.prompt_field is None else f'-{PAIRS}'}"
        )
        return f"hub-{options}-{self._data._fingerprint}-{len(self._data)}"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
