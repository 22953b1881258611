"""The operations: public functions, checks, and their registration with torch, one file per operation."""
