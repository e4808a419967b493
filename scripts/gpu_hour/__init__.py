"""Parts of the first hour on a GPU, one function each: an iterator of rows."""
