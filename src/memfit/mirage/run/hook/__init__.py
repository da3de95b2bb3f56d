"""What is put on the module path of a script that runs on an imaginary GPU; see ``memfit_hook``."""
