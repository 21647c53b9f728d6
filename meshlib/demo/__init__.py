"""A real mesh on this machine: a config service, three services as processes, traffic, and what a mesh promises.

The applications are `storefront`, `orders` and `inventory`: short, and written as a user would write them. The rest is
the stage: `shop` (files), `process`, `config_service` and `fleet` (processes), `shopper` (traffic), `census` (what
/metrics says), `stage`, `scenes`, `joining` and `outage` (what is promised), `report`, `driver` and `keeping`.
"""
