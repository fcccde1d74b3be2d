"""Collateral: what vendors publish about their platforms, fetched, cached, packed and served.

Nothing here decides what is genuine. A blob that was fetched, cached or imported is proved each time it is used, by
`sealwright.verify`; here it is only checked to be in its format and about what was asked for.
"""
