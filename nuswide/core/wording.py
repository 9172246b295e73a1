"""Numbers in sentences.

>>> counted(1, "label"), counted(2400, "label")
('1 label', '2,400 labels')
>>> counted(1, "image is", "images are")
'1 image is'
"""


def counted(number: int, one: str, many: str = "") -> str:
    """Return a number and what it counts. many: the words for any number but 1, `one`s if empty."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"
