"""Sound and pictures out of media files, with PyAV."""
