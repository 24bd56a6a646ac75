"""Tokens that say the same are merged (Bolya et al. 2023, "Token Merging: your ViT but faster"), by a threshold.

Bipartite soft matching, the paper's section 3: an image's tokens are dealt to two sets by turns, each of the first set
finds the most similar one of the second, by the cosine of their keys (mean over heads), and is merged with it: their
average, weighted by how many places each stands for. The paper merges the r best pairs, and each image loses as many
tokens; here all pairs above a threshold are merged, and a plain image loses more than a busy one. Prefix tokens (class,
registers) are never merged, and the order of the tokens that stay is kept.

Shapes: B images of N places (prefix tokens first), T tokens of all images, D width, E head width; in a group of b
images of up to M tokens, F first and S second ones.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from models.token_pack import Group, TokenPack


class Tokens(NamedTuple):
    """Tokens of a batch, image behind image in one sequence; each stands for one place or more."""

    x_TD: Tensor
    sizes_T: Tensor
    """Of how many places each is the average; float32 at least."""
    owners_BN: Tensor
    """Which token stands for each place."""
    counts: tuple[int, ...]
    """Tokens of each image."""
    are_merged: bool
    """Whether some stand for more than one place."""

    @classmethod
    def of(cls, x_BND: Tensor) -> Tokens:
        """A token for each place."""
        batch, places = x_BND.shape[:2]
        total = batch * places
        dtype = torch.promote_types(x_BND.dtype, torch.float32)
        return cls(
            x_TD=x_BND.flatten(0, 1),
            sizes_T=torch.ones(total, dtype=dtype, device=x_BND.device),
            owners_BN=torch.arange(total, device=x_BND.device).view(batch, places),
            counts=(places,) * batch,
            are_merged=False,
        )

    def spread(self) -> Tensor:
        """[B, N, D]: to each place its token."""
        if not self.are_merged:
            return self.x_TD.view(*self.owners_BN.shape, -1)
        return spread(self.x_TD, self.owners_BN)


def spread(x: Tensor, owners_BN: Tensor) -> Tensor:
    """Packed [T, ...] -> [B, N, ...]: to each place what its token has."""
    places: Tensor = x.index_select(0, owners_BN.flatten()).unflatten(0, owners_BN.shape)
    return places


def merge_alike(
    tokens: Tokens, keys_TE: Tensor, pack: TokenPack, *, threshold: float, num_prefix: int
) -> Tokens:
    """Tokens after one round of merging; `keys_TE` are those of attention, averaged over heads.

    Where only shapes are computed (meta and fake tensors) none is merged: what is counted there is the most.
    """
    if keys_TE.is_meta or isinstance(keys_TE, FakeTensor):
        return tokens._replace(are_merged=True)
    into_T = find_partners(keys_TE, pack, threshold=threshold, num_prefix=num_prefix)
    stays_T = into_T == torch.arange(len(into_T), device=into_T.device)
    numbers_T = stays_T.cumsum(0)
    # NOTE: the one exchange with the host that a layer needs: how long the next sequences are.
    upto = numbers_T[pack.ends - 1].tolist()
    counts = tuple(end - begin for begin, end in pairwise([0, *upto]))
    if counts == tokens.counts:
        return tokens
    return _averaged(tokens, (numbers_T - 1)[into_T], counts)


@torch.no_grad()
def find_partners(keys_TE: Tensor, pack: TokenPack, *, threshold: float, num_prefix: int) -> Tensor:
    """int64 [T]: the token that each is merged into; its own number where it stays."""
    into_T = torch.arange(len(keys_TE) + 1, device=keys_TE.device)  # the last is padding's
    with torch.autocast(keys_TE.device.type, enabled=False):
        dtype = torch.promote_types(keys_TE.dtype, torch.float32)
        units_TE = F.normalize(keys_TE.to(dtype), dim=-1)
        for group in pack.groups:
            first_bF, partner_bF = _pairs(units_TE, group, pack, threshold, num_prefix)
            into_T[first_bF] = partner_bF
    return into_T[:-1]


def _pairs(
    units_TE: Tensor, group: Group, pack: TokenPack, threshold: float, num_prefix: int
) -> tuple[Tensor, Tensor]:
    """[b, F] numbers of the first set's tokens, and of those that they are merged into; T, T for padding."""
    numbers_bM = group.take(torch.arange(pack.num_tokens, device=units_TE.device))
    patches_bME = group.take(units_TE)[:, num_prefix:]
    if group.is_token_bM is not None:
        numbers_bM = numbers_bM.masked_fill(~group.is_token_bM, pack.num_tokens)
    numbers_bM = numbers_bM[:, num_prefix:]
    first_bF, second_bS = numbers_bM[:, 0::2], numbers_bM[:, 1::2]
    if second_bS.shape[1] == 0:
        return first_bF, first_bF
    likeness_bFS = patches_bME[:, 0::2] @ patches_bME[:, 1::2].transpose(1, 2)
    likeness_bFS = likeness_bFS.masked_fill((second_bS == pack.num_tokens).unsqueeze(1), -2.0)
    best_bF, place_bF = likeness_bFS.max(dim=2)
    is_alike_bF = (best_bF > threshold) & (first_bF < pack.num_tokens)
    return first_bF, torch.where(is_alike_bF, second_bS.gather(1, place_bF), first_bF)


def _averaged(tokens: Tokens, target_T: Tensor, counts: tuple[int, ...]) -> Tokens:
    """What became of the tokens when each went to the place `target_T` of a new sequence."""
    x_TD, sizes_T = tokens.x_TD, tokens.sizes_T
    total = sum(counts)
    sizes = sizes_T.new_zeros(total).index_add(0, target_T, sizes_T)
    shares_T = sizes_T / sizes[target_T]
    weighted_TD = x_TD * shares_T.unsqueeze(1)
    x = weighted_TD.new_zeros(total, x_TD.shape[1]).index_add(0, target_T, weighted_TD)
    return Tokens(
        x_TD=x.to(x_TD.dtype),
        sizes_T=sizes,
        owners_BN=target_T[tokens.owners_BN],
        counts=counts,
        are_merged=True,
    )
