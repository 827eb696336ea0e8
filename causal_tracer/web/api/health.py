"""The route for monitoring: GET /health."""

from __future__ import annotations

from typing import TYPE_CHECKING

from causal_tracer.web.service.tracing import TraceService

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

PATH = "/health"


def health_route(service: TraceService) -> Route:
    """Return the route that answers with `service.health()`: status 200 while the app can serve, else 503."""
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def health(_request: Request) -> JSONResponse:
        found = service.health()
        return JSONResponse(found, status_code=200 if found["status"] == "ok" else 503)

    return Route(PATH, health, methods=["GET"])
