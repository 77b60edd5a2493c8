"""The soak: good clients beside bad ones on one server, and whether the good ones notice."""
