"""The control plane: tasks that run on many workers. A process of its own, never imported by a node.

From the bottom: `model` (what there is), `lifecycle` (how it changes, pure), `store` (where it is kept), `plane` (the
use cases, free of transport and of any one store), `security` (who may connect).
"""
