"""The mixing matrix of a round: row k holds the shares of all states in client k's new state."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PACKED = ("M", "took_part", "sizes")  # the names of the tensors of `packed`


@dataclass(frozen=True)
class RoundMixing:
    """A (n, n): the matrix among the clients `who` (from 0) that took part. All others kept their own state."""

    who: tuple[int, ...]
    A: Tensor

    def among(self, clients: int) -> Tensor:
        """The mixing matrix M (N, N) of all clients."""
        M, who = torch.eye(clients), torch.tensor(self.who, dtype=torch.long)
        M[who[:, None], who] = self.A
        return M


def packed(rounds: Sequence[RoundMixing]) -> dict[str, Tensor]:
    """Rounds as tensors. Their size grows with the clients that took part, not with N. Inverse: `unpacked`."""
    return {
        "M": torch.cat([each.A.flatten() for each in rounds]) if rounds else torch.zeros(0),
        "took_part": torch.tensor([k for each in rounds for k in each.who], dtype=torch.long),
        "sizes": torch.tensor([len(each.who) for each in rounds], dtype=torch.long),
    }


def unpacked(tensors: dict[str, Tensor]) -> list[RoundMixing]:
    """The rounds from `packed`. Raises KeyError, RuntimeError or ValueError for other tensors."""
    sizes = tensors["sizes"].tolist()
    parts = zip(tensors["took_part"].split(sizes), tensors["M"].split([n * n for n in sizes]), strict=True)
    return [RoundMixing(tuple(who.tolist()), A.view(len(who), len(who))) for who, A in parts]
