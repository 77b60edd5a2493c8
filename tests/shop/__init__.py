"""An ordinary Django site, in ``project/``, and what runs it from an installed wheel: realtime is a guest there."""
