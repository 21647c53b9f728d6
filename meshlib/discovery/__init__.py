"""Who is out there, and what the config service says about it.

`fragment` (a signed piece of policy) · `poll_schedule` (when to ask) · `subscription` (what is wanted, what has
arrived, what may be put in force) · `registered` (the endpoints of a service over time) · `registration` (what this
process is to the registry) · `snapshot_file` (what a restart begins with). All but the last are pure.
"""
