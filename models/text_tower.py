"""Text tower: captions -> tokens -> vectors, by open_clip's tokenizer and Transformer, trained from scratch.

    int64 [N, L] -> every token attends to every other -> the last one's vector -> linear -> [N, E]    (as in SigLIP)

Only importer of open_clip, which is an optional package. Nothing is downloaded: its vocabulary lies within it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from configs.base import ConfigError
from configs.text import TextConfig

_EPSILON = 1e-6


class Tokenizer:
    """CLIP's byte pairs of lower-case text: 49,408 of them, begin and end included."""

    def __init__(self, context_length: int) -> None:
        self.context_length = context_length
        self._tokenizer = _import_open_clip().SimpleTokenizer(context_length=context_length)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """int64 [N, L] on the host: begin, the text as far as there is room, end, zeros."""
        tokens: Tensor = self._tokenizer(list(texts))
        return tokens


def build_text_tower(config: TextConfig, *, embed_dim: int) -> nn.Module:
    """tokens int64 [N, L] -> [N, E]."""
    open_clip = _import_open_clip()
    tower: nn.Module = open_clip.transformer.TextTransformer(
        context_length=config.context_length,
        vocab_size=open_clip.tokenizer.SimpleTokenizer().vocab_size,
        width=config.width,
        heads=config.heads,
        layers=config.layers,
        output_dim=embed_dim,
        no_causal_mask=True,
        pool_type="last",
        proj_bias=True,
        norm_layer=partial(nn.LayerNorm, eps=_EPSILON),
    )
    return tower


def _import_open_clip() -> Any:
    try:
        import open_clip
    except ImportError as error:
        raise ConfigError(
            f"captions are read by the optional package open_clip, which is not there ({error}): "
            "pip install 'mirada[text]'"
        ) from error
    return open_clip
