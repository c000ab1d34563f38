"""Each kernel handle that nftrace reads, and the one module that changes the machine."""
