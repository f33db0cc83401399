"""Who listened to whom in a round: row k says of whose states client k's new one is made, and in which shares."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PACKED = ("M", "took_part", "sizes")  # the names of the tensors of `packed`


@dataclass(frozen=True)
class Listening:
    """A (n, n) among the clients `who` (from 0) that took part; every other one had its own state alone."""

    who: tuple[int, ...]
    A: Tensor

    def among(self, clients: int) -> Tensor:
        """The matrix M (N, N) among all clients."""
        M, who = torch.eye(clients), torch.tensor(self.who, dtype=torch.long)
        M[who[:, None], who] = self.A
        return M


def packed(rounds: Sequence[Listening]) -> dict[str, Tensor]:
    """Rounds as tensors, whose size grows with those who took part and not with N; `unpacked` is the inverse."""
    return {
        "M": torch.cat([each.A.flatten() for each in rounds]) if rounds else torch.zeros(0),
        "took_part": torch.tensor([k for each in rounds for k in each.who], dtype=torch.long),
        "sizes": torch.tensor([len(each.who) for each in rounds], dtype=torch.long),
    }


def unpacked(tensors: dict[str, Tensor]) -> list[Listening]:
    """Raises KeyError, RuntimeError or ValueError where the tensors are not those of `packed`."""
    sizes = tensors["sizes"].tolist()
    parts = zip(tensors["took_part"].split(sizes), tensors["M"].split([n * n for n in sizes]), strict=True)
    return [Listening(tuple(who.tolist()), A.view(len(who), len(who))) for who, A in parts]
