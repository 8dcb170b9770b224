"""What the commands write for a reader: the report card, the report of a fix, and the pages they are printed on."""
