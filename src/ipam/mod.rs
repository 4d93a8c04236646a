//! Ranges of addresses, allocation, and the store that says which are taken.
