"""The commands; nothing in worldmodel or agents imports them."""
