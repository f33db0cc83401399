"""The gauge: (Q R, Q W, Q b) is the same intervention for every orthogonal Q (r, r), but not the same numbers.

Averages of states that differ by such a Q lose what the clients learned (trap 4 of the workbook's list). Clients start
from one R, so they differ little; `align` takes away what difference there is: for each site, Procrustes' Q that
brings Q R nearest to a reference R0, from the SVD of R0 R^T = U S V^T as Q = U V^T. A reconstruction, as an option.
"""

import torch

from .interventions import State


def align(state: State, reference: State) -> State:
    """The same interventions with R (S, r, d), W and b turned towards the reference's R; other tensors as they are."""
    U, _, Vh = torch.linalg.svd(reference["R"] @ state["R"].mT)
    Q = U @ Vh  # (S, r, r)
    turned = {"R": Q @ state["R"], "b": (Q @ state["b"].unsqueeze(-1)).squeeze(-1)}
    if "W" in state:
        turned["W"] = Q @ state["W"]
    return {**state, **turned}
