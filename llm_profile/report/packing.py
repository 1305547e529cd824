"""Whole numbers as short text, for a page that has tens of thousands of them. Imports no torch.

A list is its first number and the differences between neighbours, which are small where a curve is smooth. Each is
mapped to 0, 1, 2, ... (0, -1, 1, -2, ...), cut into groups of 7 bits, the lowest first, and the 8th bit says that more
follow. The bytes are base64. `page/data.js` reads it.
"""

from base64 import b64encode
from collections.abc import Iterable


def packed(numbers: Iterable[int]) -> str:
    """The text of a list of whole numbers of any size."""
    content, before = bytearray(), 0
    for number in numbers:
        difference, before = number - before, number
        rest = 2 * difference if difference >= 0 else -2 * difference - 1
        while rest > 127:
            content.append(rest & 127 | 128)
            rest >>= 7
        content.append(rest)
    return b64encode(content).decode()
