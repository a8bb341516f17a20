"""Data sets of a model hub as local files: which files of a repository a name means, fetched into the hub's cache."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import httpx2

if TYPE_CHECKING:
    from huggingface_hub import HfApi

SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".csv", ".csv.gz")
SPLITS = ("train", "validation", "valid", "val", "dev", "test", "eval")
CONVERTED = "refs/convert/parquet"
"""The branch on which the hub itself keeps a Parquet copy of a public data set."""

PREFIX = "hf:"
_NAME = re.compile(
    r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(/(?P<configuration>[\w.-]+))?"
    r"(@(?P<revision>[\w./-]+))?(:(?P<split>[\w.-]+))?"
)


class DatasetError(ValueError):
    """A data set that cannot be had; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class HubDataset:
    """hf:owner/name[/configuration][@revision][:split]. Without a split `train` is meant, or all of what has none."""

    repository: str
    configuration: str | None = None
    revision: str | None = None
    split: str | None = None


def parse_hub_name(name: str) -> HubDataset | None:
    """The data set that a name means; None where it is none of the hub's.

    Raises:
        DatasetError: it begins with hf: and goes on wrongly.
    """
    found = _NAME.fullmatch(name.removeprefix(PREFIX))
    if found and (name.startswith(PREFIX) or not name.endswith(SUFFIXES)):
        return HubDataset(**found.groupdict())
    if name.startswith(PREFIX):
        raise DatasetError(f"{name!r} is not hf:owner/name[/configuration][@revision][:split]")
    return None


def hub_files(dataset: HubDataset) -> list[Path]:
    """Local paths of a data set's files, fetched where they are missing. HF_ENDPOINT and HF_TOKEN are heeded.

    Raises:
        DatasetError: no such data set, split or configuration; no file of a known format; the hub cannot be reached.
    """
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import EntryNotFoundError
    except ImportError as error:
        raise DatasetError("a data set of the hub needs huggingface_hub: pip install 'collegium[train]'") from error
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    api = HfApi(endpoint=endpoint)
    try:
        commit, names = _listing(api, dataset)
        return [
            Path(api.hf_hub_download(dataset.repository, name, repo_type="dataset", revision=commit))
            for name in chosen_files(names, dataset)
        ]
    except (OSError, httpx2.HTTPError, EntryNotFoundError) as error:
        raise DatasetError(_problem(dataset, endpoint, error)) from error


def chosen_files(names: Sequence[str], dataset: HubDataset) -> list[str]:
    """The files of a repository that hold the wanted split, all of one format and one configuration.

    Raises:
        DatasetError: there are none, or of several configurations.
    """
    held = sorted(name for name in names if name.endswith(SUFFIXES))
    if not held:
        raise DatasetError(f"data set {dataset.repository} holds no file of {', '.join(SUFFIXES)}")
    if dataset.configuration:
        held = [name for name in held if dataset.configuration in PurePosixPath(name).parts[:-1]]
    wanted = [name for name in held if _of_split(name, dataset.split or SPLITS[0])]
    if not wanted and dataset.split is None and not any(_of_split(name, split) for name in held for split in SPLITS):
        wanted = held
    if not wanted:
        what = "/".join(filter(None, (dataset.configuration, dataset.split or SPLITS[0])))
        raise DatasetError(f"data set {dataset.repository} has no file of {what!r}; it has {_shown(names)}")
    folders = sorted({str(PurePosixPath(name).parent) for name in wanted})
    if len(folders) > 1:
        raise DatasetError(
            f"data set {dataset.repository} has several configurations ({_shown(folders)}); "
            f"name one: {PREFIX}{dataset.repository}/{PurePosixPath(folders[0]).parts[0]}"
        )
    suffix = next(suffix for suffix in SUFFIXES if any(name.endswith(suffix) for name in wanted))
    return [name for name in wanted if name.endswith(suffix)]


def _listing(api: HfApi, dataset: HubDataset) -> tuple[str, list[str]]:
    """(commit, names of files); the hub's Parquet copy where the repository has no such files."""
    from huggingface_hub.errors import RevisionNotFoundError

    info = api.dataset_info(dataset.repository, revision=dataset.revision)
    names = [sibling.rfilename for sibling in info.siblings or []]
    if not dataset.revision and not any(name.endswith(SUFFIXES) for name in names):
        try:
            info = api.dataset_info(dataset.repository, revision=CONVERTED)
            names = [sibling.rfilename for sibling in info.siblings or []]
        except RevisionNotFoundError:
            pass
    return str(info.sha), names


def _of_split(name: str, split: str) -> bool:
    return re.search(rf"(^|[/_.-]){re.escape(split)}([/_.-]|$)", name) is not None


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _problem(dataset: HubDataset, endpoint: str, error: Exception) -> str:
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    name = dataset.repository
    if isinstance(error, RevisionNotFoundError):
        return f"data set {name} has no revision {dataset.revision!r}"
    if isinstance(error, RepositoryNotFoundError):
        return f"the hub {endpoint} knows no data set {name!r}, or it is gated: accept its licence and set HF_TOKEN"
    if isinstance(error, HfHubHTTPError):
        return f"the hub {endpoint} answered {error.response.status_code} for data set {name!r}; try again later"
    reason = str(error).split("\n")[0] or type(error).__name__
    return f"data set {name!r} cannot be fetched from the hub {endpoint} ({reason}); give a file or a folder instead"
