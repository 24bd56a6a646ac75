"""An exported folder onto the Hugging Face hub, where ``timm.create_model("hf-hub:OWNER/NAME")`` finds it."""

from __future__ import annotations

import re
from pathlib import Path

from configs.base import ConfigError

_PREFIX = "hf-hub:"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def parse_hub_name(text: str) -> str:
    """OWNER/NAME of ``hf-hub:OWNER/NAME``; ConfigError for anything else."""
    name = text.removeprefix(_PREFIX)
    if not text.startswith(_PREFIX) or not _NAME.fullmatch(name):
        raise ConfigError(f"--push {text!r} is no place on the hub: write hf-hub:OWNER/NAME")
    return name


def push_folder(folder: Path, name: str) -> str:
    """Uploads a folder as one commit and returns its address; a repository that is new is private.

    Who pushes is told by HF_TOKEN, or by what ``hf auth login`` has stored; HF_ENDPOINT names another hub.
    """
    from huggingface_hub import HfApi, errors

    # The hub's errors are those of the HTTP library it uses, which has changed before: asked for by this name.
    kinds: tuple[type[Exception], ...] = (errors.HTTPError, OSError, ValueError, RuntimeError)  # type: ignore[attr-defined]
    try:
        hub = HfApi()
        hub.create_repo(name, private=True, exist_ok=True)
        commit = hub.upload_folder(repo_id=name, folder_path=folder, commit_message="Exported by Mirada")
    except kinds as failure:
        reason = " ".join(line.strip() for line in str(failure).splitlines()[:3] if line.strip())
        raise ConfigError(
            f"{str(folder)!r} is written, but could not be pushed to hf-hub:{name}: "
            f"{type(failure).__name__}: {reason[:400]}; log in with `hf auth login` or set HF_TOKEN, and run the same "
            "command again"
        ) from failure
    return str(commit.commit_url)
