"""A real mesh on this machine: three services as processes, traffic, and what a mesh promises, checked while it runs.

The applications are `storefront`, `orders` and `inventory`: short, and written as a user would write them. The rest is
the stage: `shop` (files), `fleet` (processes), `shopper` (traffic), `census` (what /metrics says), `stage` and
`scenes` (what is promised), `report` and `driver`.
"""
