"""HTTP: what browsers and their programs get of a node. Sessions, the tree to read, terminals, events, and the page.

Everything shown is read from the records where it is asked for; nothing is remembered here between two requests.
"""
