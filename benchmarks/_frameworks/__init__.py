"""Training steps of frameworks as they write them: own model classes, own losses, own loops' habits.

Each module has ``SETTINGS`` (name -> Setting) and ``program(setting)``, which imports the framework and returns what
``memfit.trace.engine.run`` takes. Nothing here runs on a device; shapes are real.
"""
