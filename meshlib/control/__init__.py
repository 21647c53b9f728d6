"""The config service: who is there, what the policy is, who is who. Never imported by the data plane.

Kernels decide; time is an argument, and they never wait:

    clock.py        versions: a number that only grows
    registry.py     which instances are there, and whose lease has ended
    publication.py  a mesh.yaml as resources
    catalog.py      what is published: versions, signed bytes, what is newer than a process has

The disk keeps what they decide:

    database.py     a SQLite file that one process has
    store.py        what is in it: one method, one transaction
    issuance.py     join tokens, leaves, revocation, the rotation of roots
    writer.py       the one thread that waits for the disk

The service puts them together:

    plane.py        everything changes here, in order: proposed, stored, published, told
    polls.py        who waits for what
    watch.py        the watched mesh.yaml
    who.py          who asks, and may they?
    messages.py     what is said and answered
    api.py          the endpoints; openapi.py describes them, status.py is what the operator sees
    protocol.py     connections, their certificates and their limits
    server.py       all of it as a process
"""
