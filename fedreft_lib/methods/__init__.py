"""One file per federated method. A method is a set of hooks: see `method`, and `fedreft` for the paper's own.

method       trains                  sends        the server answers            the client takes in
local        all                     nothing
centralised  all, on all data        nothing
fedavg       all                     `sharing`    mean by example counts        whole
fedreft      all                     `sharing`    All-But-Me, one each          a share lam, by `mixing`
fedit        A, B                    A, B         mean by example counts        whole
fedprox      all, near the start     `sharing`    mean by example counts        whole
fedadam      all                     `sharing`    Adam's step along the mean    whole
ffa          B | W, b                the same     mean, exact                   whole
fedsa        all                     A | R        mean by example counts        whole; B | W, b stay
fedalt       own branch, router      own branch   mean of the others            as its "rest" branch
feddpa       local, then global      global       mean, unweighted              whole; local stays
flora        fresh branch            fresh        all branches, stacked         frozen, under a new fresh branch
fedsb        S | S, b                the same     mean, exact                   whole
lorar        all                     `sharing`    mean by loss reductions       whole
lorafair     all                     all          mean, B | W, b corrected      whole
tuned        all                     `sharing`    mean by example counts        whole; trains on before a test
flood        all, items weighted     `sharing`    mean by confidence            whole
fedvra       all, by start and dual  `sharing`    mean plus mean dual         whole
fedhl        its rank's rows         all          a sum of changes, truncated  whole; it uses its rank's rows
fedppa       its layers, near means  all          a mean for each layer        to be drawn to; it keeps its own
placebo      all                     `sharing`    nothing that is used          a share lam of the start
fedins       its items' instances    pool, keys   mean, unweighted              whole
fedgmm       learners, in turn       all but pi   mean of each, by its share    whole
alore        S, P, Q | and c         all          mean by example counts        whole
fedglomo     all, from two starts    all, twice   step with momentum            whole, with the one before
flame        experts, router, s      all but s    mean by counts and use        whole; k, s stay

Other files hold what methods are made of: kinds of states (lora, branches, mixture, routed, masked, kronecker, scale),
what states add to the model as matrices (additions), and embeddings, gaussians, entropies, uncertainty and
recursive_momentum.
"""

from .alore import ALORE
from .centralised import CENTRALISED
from .fedadam import FEDADAM
from .fedalt import FEDALT
from .fedavg import FEDAVG
from .feddpa import FEDDPA
from .fedglomo import FEDGLOMO
from .fedgmm import FEDGMM
from .fedhl import FEDHL
from .fedins import FEDINS
from .fedit import FEDIT
from .fedppa import FEDPPA
from .fedprox import FEDPROX
from .fedreft import FEDREFT
from .fedsa import FEDSA
from .fedsb import FEDSB
from .fedvra import FEDVRA
from .ffa import FFA
from .flame import FLAME
from .flood import FLOOD
from .flora import FLORA
from .local import LOCAL
from .lorafair import LORAFAIR
from .lorar import LORAR
from .method import Method
from .placebo import PLACEBO
from .tuned import TUNED

METHODS: dict[str, Method] = {
    each.name: each
    for each in (
        LOCAL, FEDAVG, FEDREFT, CENTRALISED, FEDIT, FEDPROX, FEDADAM, FFA, FEDSA, FEDALT, FEDDPA, FLORA, FEDSB,
        LORAR, LORAFAIR, TUNED, FLOOD, FEDVRA, FEDHL, FEDPPA, FEDINS, FEDGMM, ALORE, FEDGLOMO, FLAME, PLACEBO,
    )
}  # fmt: skip
