"""How far is a pruned network from the network it was pruned from, and with what probability?"""

__version__ = "0.1.0"
