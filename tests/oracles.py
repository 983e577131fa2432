"""What tests compare with: networks, masks and distances in NumPy's float64, and random pairs.

Nothing here compiles a program.
"""
