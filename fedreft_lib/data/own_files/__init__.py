"""Your own files: rows of JSON, CSV or TSV, read strictly; their columns and answers are recognised.

local_files                          the files of a task; read this first
row_files, plain_text, strict_json   rows from files that may be damaged, or of any size
fields, answers                      which column is the question, which choice is the answer
"""
