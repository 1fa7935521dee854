"""What is fuzzed: each module has a function `one_input(data)` that raises on a broken rule.

Any octets are a fitting input. The functions know neither pytest nor the fuzzer that calls them.
"""
