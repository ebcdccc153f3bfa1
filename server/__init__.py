"""The Nightferry server: a Django project that knows neither the worker nor any ML framework."""
