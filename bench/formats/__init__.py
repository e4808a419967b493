"""Study of storage formats: which family of formats loses least at equal bytes, width by width.

``python -m bench.formats`` trains uniform choices with one rank and appends every finished trial to a file; widths of 4
bits, which the embedded base can't decide, are compared on weights that were never quantised.
"""
