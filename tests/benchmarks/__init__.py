"""Speed, as ratios: our time over that of something else that does the same work, measured in one run, in turns.

    make bench                                          everything
    python -m tests.benchmarks [NAMES] [--repeats N]    some of it

A file is a topic: its `contests(size)` yields what is to be measured (`contest.Contest`), or why it cannot be
(`contest.Skipped`). To add a topic, write such a file and name it in TOPICS of `__main__`.
"""
