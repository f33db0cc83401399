"""Files of one's own: rows of JSON, CSV or TSV read strictly, their fields and answers recognised.

local_files                          the files of a task; read this first
row_files, plain_text, strict_json   rows out of files that may be damaged, or of any size
fields, answers                      which field is the question, which value is the answer
"""
