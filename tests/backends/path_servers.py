"""The same three resources behind five ways to route a path: what each is called stands in the answer.

Resources: /api/admin with all below it, /files/{user}/notes, and everything else.
"""

import sys

kind, port = sys.argv[1], int(sys.argv[2])


def serve_wsgi(app):
    from gunicorn.app.base import BaseApplication

    class Server(BaseApplication):
        def load_config(self):
            self.cfg.set("bind", f"127.0.0.1:{port}")
            self.cfg.set("worker_class", "gthread")

        def load(self):
            return app

    Server().run()


def fastapi():
    import uvicorn
    from fastapi import FastAPI, WebSocket
    from fastapi.responses import PlainTextResponse

    app = FastAPI()

    @app.get("/api/admin", response_class=PlainTextResponse)
    @app.get("/api/admin/{rest:path}", response_class=PlainTextResponse)
    def admin(rest: str = ""):
        return "the admin page"

    @app.websocket("/api/admin")
    async def admin_socket(socket: WebSocket):
        await socket.accept()
        await socket.send_text("the admin socket")
        await socket.close()

    @app.get("/files/{user}/notes", response_class=PlainTextResponse)
    def notes(user: str):
        return f"notes of [{user.strip()}]"

    @app.get("/{rest:path}", response_class=PlainTextResponse)
    def other(rest: str):
        return "something else"

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


def flask():
    from flask import Flask

    app = Flask("paths")

    @app.get("/api/admin", strict_slashes=False)
    @app.get("/api/admin/<path:rest>")
    def admin(rest=""):
        return "the admin page"

    @app.get("/files/<user>/notes")
    def notes(user):
        return f"notes of [{user.strip()}]"

    @app.get("/<path:rest>")
    def other(rest):
        return "something else"

    serve_wsgi(app)


def django():
    from django.conf import settings
    from django.http import HttpResponse
    from django.urls import re_path

    settings.configure(
        ROOT_URLCONF="paths",
        ALLOWED_HOSTS=["*"],
        SECRET_KEY="not used for anything",
        APPEND_SLASH=False,
        MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
    )
    module = type(sys)("paths")
    module.urlpatterns = [
        re_path(r"^api/admin(/.*)?$", lambda request, *rest: HttpResponse("the admin page")),
        re_path(r"^files/([^/]+)/notes$", lambda request, user: HttpResponse(f"notes of [{user.strip()}]")),
        re_path(r"^.*", lambda request: HttpResponse("something else")),
    ]
    sys.modules["paths"] = module
    from django.core.wsgi import get_wsgi_application

    serve_wsgi(get_wsgi_application())


def aiohttp():
    from aiohttp import web

    async def admin(request):
        return web.Response(text="the admin page")

    async def notes(request):
        return web.Response(text=f"notes of [{request.match_info['user'].strip()}]")

    async def other(request):
        return web.Response(text="something else")

    app = web.Application()
    app.router.add_get("/api/admin", admin)
    app.router.add_get("/api/admin/{rest:.*}", admin)
    app.router.add_get("/files/{user}/notes", notes)
    app.router.add_get("/{rest:.*}", other)
    web.run_app(app, host="127.0.0.1", port=port, print=None)


{"fastapi": fastapi, "flask": flask, "django": django, "aiohttp": aiohttp}[kind]()
