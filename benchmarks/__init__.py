"""What meshlib costs, measured. Run by `make bench`; never part of `make test`: a time is not a truth."""
