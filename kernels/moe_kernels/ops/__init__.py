"""Defines the kernels as torch custom operators: one file per operator, with schema, implementation and fake."""
