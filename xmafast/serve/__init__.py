"""A page and a JSON API over one library (extra ``serve``): ``create_app`` is an ASGI application, ``run`` serves it."""

from xmafast.serve.limits import Limits

__all__ = ["Limits"]
