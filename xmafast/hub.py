"""What may have to come from the model hub, and one sentence where it cannot."""

from __future__ import annotations

import logging
import socket
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import getproxies, proxy_bypass

import huggingface_hub
import open_clip
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from torch import Tensor

from xmafast.errors import BackboneError

TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json")


def reachable(hub_id: str, files: Sequence[str] = (HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME)) -> bool:
    """Whether a hub's files are stored here, or it (or the proxy to it) answers: its client would retry for most of a minute to find out.

    hub_id: ORG/NAME, or ORG/NAME/FILE for one file alone.
    """
    repository = hub_id
    if hub_id.count("/") > 1 or hub_id.endswith("/"):
        repository, _, file = hub_id.rpartition("/")
        files = [file] if file else files
    if any(isinstance(huggingface_hub.try_to_load_from_cache(repository, file), str) for file in files):
        return True
    url = urlparse(huggingface_hub.constants.ENDPOINT)
    proxies = getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if proxy and not proxy_bypass(url.hostname or ""):  # which alone needs to answer
        url = urlparse(proxy if "://" in proxy else f"http://{proxy}")
    try:
        socket.create_connection((url.hostname or "", url.port or (80 if url.scheme == "http" else 443)), timeout=10).close()
    except OSError:
        return False
    return True


class HubTokenizer:
    """The tokenizer of an open_clip model whose vocabulary lies on the hub, loaded when the first caption comes.

    folder: a local one with ``open_clip_config.json`` and the tokenizer's files, to be read in place of the hub.
    """

    def __init__(self, model: str, source: str, folder: Path | None = None) -> None:
        self.model, self.source, self.folder = model, source, folder
        self._loaded: Callable[..., Tensor] | None = None

    def __call__(self, texts: Sequence[str], context_length: int | None = None) -> Tensor:
        """Captions -> token ids (N, context_length). Raises BackboneError where the tokenizer cannot be had."""
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded(list(texts), context_length=context_length)

    def _load(self) -> Callable[..., Tensor]:
        logging.disable(logging.CRITICAL)  # a failure becomes one sentence, not the log of its retries
        try:
            if self.folder is not None:
                tokenizer: Callable[..., Tensor] = open_clip.get_tokenizer(f"local-dir:{self.folder}")
                return tokenizer
            if not reachable(self.source, TOKENIZER_FILES):
                raise ConnectionError("the model hub cannot be reached")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tokenizer = open_clip.get_tokenizer(self.model)
                return tokenizer
        except ImportError as error:
            raise BackboneError(
                f"The tokenizer {self.source!r} of {self.model} needs a package that is not installed ({first_line(error)}); "
                "run `pip install transformers sentencepiece`, or encode token ids in place of texts."
            ) from error
        except Exception as error:
            place = f"in the folder {self.folder}" if self.folder else "on this machine, and could not be downloaded"
            raise BackboneError(
                f"The tokenizer {self.source!r} of {self.model} is not {place}: {first_line(error)}. "
                "Be online once, so that it is stored, or put its files and open_clip_config.json beside the weights file."
            ) from error
        finally:
            logging.disable(logging.NOTSET)


def first_line(error: Exception) -> str:
    """Of a library's error, without the full stop, to stand inside a sentence."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".:")[:200]
