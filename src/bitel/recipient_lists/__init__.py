"""Lists of recipients: reads CSV and XLSX files as spreadsheets write them.

Theory of operation. A file becomes rows: `text.csv_rows` finds the encoding and the delimiter,
`workbook.xlsx_rows` reads the first sheet that has cells. `columns.find_layout` finds the row of
headings and what each column is, from the first rows. `reading.read_list` then turns each row into
a `Recipient`, checks its number, and writes recipients in pieces, so that memory does not grow with
the file. A row with an invalid number is a recipient too, reported with its row and value.

The service reads a stranger's file in a confined process: `intake.read_file` starts
`list_worker`, which does all of the above and writes its results to two files, which `intake`
checks. Commands at a terminal read files of their own user with `text` and `columns` directly; so
these modules import nothing that only the service needs.
"""
