"""Upload an exported folder to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, get_token, is_offline_mode
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # exported lazily

from manytune.utils.errors import StoreError

_CURES = {  # HTTP status → what to do
    401: " The token is not known there: log in anew with `hf auth login`.",
    403: " The token may not write there: make one that may, or choose a name in an account of yours.",
    404: " There is no such account, or the token may not see it.",
}


def may_push(name: str) -> None:
    """Refuse, before anything is exported, a repository `name` or owner/name to which nothing could be uploaded.

    Raises StoreError where the name is not valid, the hub is switched off, or there is no token.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise StoreError(f"--push: {name!r} cannot be a repository: {str(error).splitlines()[0]}") from error
    if is_offline_mode():
        raise StoreError("--push: HF_HUB_OFFLINE is set, so nothing can be uploaded; unset it")
    if get_token() is None:
        raise StoreError(
            "--push: there is no token of the Hugging Face hub. Log in with `hf auth login`, or give a token that may "
            "write in the environment as HF_TOKEN."
        )


def push(folder: Path, name: str, *, public: bool = False) -> str:
    """Upload what `export` wrote to the repository `name`; returns its address.

    A repository that is made now is private unless `public`; one that exists stays as it is. Raises StoreError where
    the hub does not answer, or does not allow it; the folder stays.
    """
    api = HfApi()
    try:
        made = api.create_repo(name, private=not public, exist_ok=True)
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message="Upload by manytune")
    except HfHubHTTPError as error:
        status, reason = error.response.status_code, str(error).strip().splitlines()[-1]
        cure = _CURES.get(status, "")
        raise StoreError(f"--push: the hub refused {name} ({status}): {reason}{cure}\n{folder} is whole.") from error
    # Connections, proxies, time-outs: the library's exceptions for these differ from version to version.
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise StoreError(f"--push: {name} could not be uploaded ({reason}).\n{folder} is whole; try again.") from error
    return str(made)
