"""What a call costs, beside its peers. Run by `make bench`; never part of `make test`: a time is not a truth."""
