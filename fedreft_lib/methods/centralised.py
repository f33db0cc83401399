"""Centralised: one state, trained on the data of all clients with as many steps as all clients take together.

It sends data instead of updates, which a federation cannot do. The comparison shows the cost of keeping data apart.
"""

from .method import Method

CENTRALISED = Method("centralised", aggregate=None, pools_data=True)
