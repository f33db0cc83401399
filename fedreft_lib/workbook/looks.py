"""One name, one colour and one marker for each method, in every picture.

The colours are as far from each other as Okabe and Ito's, for colour-blind readers too, and all of them have a contrast
of 3 : 1 or more to white, which their orange, sky blue and yellow do not have. There are more methods than colours, so
methods with one colour have different markers.
"""

from collections.abc import Iterable

import pandas as pd

BLACK, GREY, BLUE, ORANGE, SKY, GREEN, RED, PURPLE, OLIVE = (
    "#000000", "#777777", "#0072B2", "#D07C00", "#3A9AD9", "#006B4E", "#99000D", "#882277", "#6B6B00",
)  # fmt: skip
CYCLE = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, OLIVE, BLACK)  # of clients and tasks
MARKERS = "osD^vPX*<>hp"
NAMES = {
    "local": "local only", "fedavg": "FedAvg", "centralised": "centralised (data pooled)", "fedit": "FedIT",
    "fedprox": "FedProx", "fedadam": "FedAdam", "ffa": "FFA", "fedsa": "FedSA", "fedalt": "FedALT", "feddpa": "FedDPA",
    "flora": "FLoRA", "fedsb": "Fed-SB", "lorar": "Lorar", "lorafair": "LoRA-FAIR", "tuned": "FedAvg, tuned",
    "flood": "FLood", "fedvra": "FedVRA", "fedhl": "FedHL", "fedins": "FedIns", "fedgmm": "FedGMM", "alore": "ALoRE",
    "fedglomo": "FedGLOMO", "flame": "FLAME", "fedppa": "FedPPA",
}  # fmt: skip
AGGREGATES = {
    "geometric_median": "median", "mean": "mean", "trimmed_mean": "trimmed mean",
    "coordinate_median": "coordinate median", "krum": "Krum", "multi_krum": "multi-Krum",
}  # fmt: skip
LOOKS = {  # by what a label begins with
    "local only": (BLACK, "o"), "centralised (data pooled)": (PURPLE, "o"), "placebo": (GREY, "X"),
    "FedReFT median": (BLUE, "D"), "FedReFT mean": (SKY, "s"), "FedReFT trimmed mean": (GREEN, "^"),
    "FedReFT coordinate median": (PURPLE, "D"), "FedReFT Krum": (RED, "v"), "FedReFT multi-Krum": (OLIVE, "P"),
    "FedReFT median, adaptive": (GREEN, "D"), "FedReFT mean, adaptive": (RED, "D"),
    "FedAvg": (ORANGE, "o"), "FedIT": (ORANGE, "s"), "FedProx": (ORANGE, "^"), "FedAdam": (ORANGE, "v"),
    "Lorar": (ORANGE, "P"), "FedVRA": (ORANGE, "X"), "FFA": (OLIVE, "o"), "FedSA": (OLIVE, "s"),
    "Fed-SB": (OLIVE, "D"), "LoRA-FAIR": (OLIVE, "^"), "FedALT": (RED, "o"), "FedDPA": (RED, "s"),
    "FLood": (RED, "^"), "FedGMM": (RED, "P"), "FLAME": (RED, "X"), "FLoRA": (PURPLE, "s"), "FedHL": (PURPLE, "^"),
    "FedAvg, tuned": (GREEN, "o"), "FedIns": (BLUE, "o"), "FedGLOMO": (BLUE, "^"), "ALoRE": (SKY, "o"),
    "FedPPA": (SKY, "^"),
}  # fmt: skip


def method_labels(results: pd.DataFrame) -> pd.Series:
    """A readable name of each row's method: "FedAvg", "FedReFT median, λ 0.3", "FFA (lora)"; LoReFT is not named."""

    def label(row) -> str:
        kind = "" if row.intervention == "loreft" or row.method == "fedit" else f" ({row.intervention})"
        if row.method not in ("fedreft", "placebo"):
            return NAMES.get(row.method, row.method) + kind
        mixing = row.mixing.replace("fixed ", "λ ") if row.mixing.startswith("fixed ") else f"{row.mixing} λ"
        name = "placebo" if row.method == "placebo" else f"FedReFT {AGGREGATES[row.aggregation]}"
        return f"{name}, {mixing}{kind}"

    kinds = results[["method", "aggregation", "mixing", "intervention"]]
    names = {tuple(row): label(row) for row in kinds.drop_duplicates().itertuples(index=False)}
    return pd.Series([names[tuple(row)] for row in kinds.itertuples(index=False)], index=results.index, dtype=object)


def colour_of(label: str) -> str:
    return _look(label)[0]


def looks(labels: Iterable[str]) -> dict[str, dict[str, str]]:
    """How the methods of one picture are drawn, by label: matplotlib's `color` and `marker`.

    The colour is always the method's own, and so is the marker, unless two labels here have both in common ("FedReFT
    mean, λ 0.1" and "λ 0.3"): the second then has the next marker that is free.
    """
    found: dict[str, tuple[str, str]] = {}
    for label in dict.fromkeys(labels):
        colour, own = _look(label)
        markers = (own, *MARKERS)
        found[label] = next(((colour, m) for m in markers if (colour, m) not in found.values()), (colour, own))
    return {label: {"color": colour, "marker": marker} for label, (colour, marker) in found.items()}


def _look(label: str) -> tuple[str, str]:
    """That of the longest name which the label begins with; grey for a method that has no name here."""
    names = [name for name in LOOKS if label.startswith(name)]
    return LOOKS[max(names, key=len)] if names else (GREY, "o")
