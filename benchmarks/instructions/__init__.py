"""Instruction counts of the core under callgrind, compared with a committed baseline."""
