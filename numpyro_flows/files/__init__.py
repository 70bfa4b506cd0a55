"""Files that cannot run code: safetensors for the arrays, JSON for the structure, and one table of allowed names.

`tree.save_tree` and `tree.load_tree` are the two functions that the rest of the library calls.
"""
