"""The researcher's instruments: they import the core, and the core never imports them."""
