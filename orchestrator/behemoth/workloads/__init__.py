"""Reference training programs: tiny_moe (torch) and counter (numpy alone).

They import `behemoth.sdk` and nothing else of Behemoth, as any user's program does; the neighbour that tells how is
docs/integrate.md.
"""
