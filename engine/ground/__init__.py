"""Where the sound comes from in any video: ``python -m engine.ground RUN VIDEO OUT.mp4``, and how well it is found."""
