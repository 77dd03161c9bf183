"""Tables of every format, read by one reader: csv, tsv, JSON lines, JSON lists and Parquet.

`files` finds the input's files, opens them through their compression and tells their format by
content. `delimited`, `objects` and `parquet` read records, `columns` chooses the cells that count,
and `cells` converts them to rows.
"""
