"""Which revision of a model on the hub has its weights as safetensors, where the main one has a pickle alone."""

from __future__ import annotations

from huggingface_hub import HfApi, is_offline_mode

_FILE = "model.safetensors"
_MOST = 10
"""Pull requests that are looked into, the newest first: a conversion by the hub's bot is one."""


def safetensors_revision(name: str) -> str | None:
    """The branch or pull request in which a repository has safetensors weights; None where the hub names none."""
    if is_offline_mode():
        return None
    api = HfApi()
    try:
        refs = api.list_repo_refs(name, include_pull_requests=True)
        branches = [each.name for each in refs.branches if each.name != "main"]
        requests = [each.ref for each in refs.pull_requests or ()][::-1]
        found = (ref for ref in (*branches, *requests)[:_MOST] if api.file_exists(name, _FILE, revision=ref))
        return next(found, None)
    except Exception:  # this is advice within another message: no answer is no reason for a second error
        return None
