"""Centralised: one state trained on everybody's data, with as many steps as all clients take together.

It sends no updates because it has moved the data instead; a federation cannot do this, and its line shows what
keeping the data apart costs.
"""

from .method import Method

CENTRALISED = Method("centralised", aggregate=None, pools_data=True)
