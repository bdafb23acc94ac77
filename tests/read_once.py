"""Has Hydra read the files under conf/ once for each choice among them: for every run it reads and
merges two dozen, which takes as long as a tiny run trains. Values it sets as ever, in a copy."""

import dataclasses
import pickle
from pathlib import Path

from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl, create_defaults_list
from hydra._internal.defaults_list import Overrides

CONF = Path(__file__).parent.parent / "conf"
merge = ConfigLoaderImpl._compose_config_from_defaults_list
#: Which files a choice stands for; and what is in them all, pickled, as that copies fastest.
listed, merged = {}, {}


def is_ours(repo) -> bool:
    """Whether files are looked for in no folder of a user's, where they may change."""
    return [s.path for s in repo.get_sources() if s.scheme() == "file"] == [str(CONF)]


def list_once(repo, config_name, overrides_list, prepend_hydra, skip_missing):
    if not is_ours(repo):
        return create_defaults_list(repo, config_name, overrides_list, prepend_hydra, skip_missing)
    values = Overrides(repo=repo, overrides_list=overrides_list).config_overrides
    choices = [each for each in overrides_list if repo.group_exists(each.key_or_group)]
    key = (config_name, prepend_hydra, skip_missing, *(each.input_line for each in choices))
    if key not in listed:
        rest = prepend_hydra, skip_missing
        listed[key] = create_defaults_list(repo, config_name, choices, *rest)
    return dataclasses.replace(listed[key], config_overrides=values)


def merge_once(loader, defaults, repo):
    if not is_ours(repo):
        return merge(loader, defaults, repo)
    key = tuple(map(dataclasses.astuple, defaults))
    if key not in merged:
        merged[key] = pickle.dumps(merge(loader, defaults, repo))
    return pickle.loads(merged[key])


def remember() -> None:
    """Do so from now on, in this process."""
    config_loader_impl.create_defaults_list = list_once
    ConfigLoaderImpl._compose_config_from_defaults_list = merge_once
