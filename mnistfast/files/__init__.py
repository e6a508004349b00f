"""Reading and writing files: whole or not at all, regular ones alone. Imports `errors`."""
