"""One runner per runtime: the parent's side under its name, the child's under ``*_model`` or ``*_engine``."""
