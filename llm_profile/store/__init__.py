"""Tables on disk: the journal, the CSV, the rows file and the metadata."""
