"""Reading and writing files: whole or not at all, regular ones alone, and what is wrong with one said in a line.

`atomic` writes, through `folder`, which holds one open; `regular` opens, and `small` reads texts; `yaml_file` reads
files of options; `decoding` makes one failure of what decoders raise. Imports `errors`.
"""
