"""A backend that believes signed assertions only: the middleware of docs/asgi around three lines of FastAPI."""

import os

from fastapi import FastAPI, Request, WebSocket
from vestibule_assertion import AssertionMiddleware

app = FastAPI()
app.add_middleware(AssertionMiddleware, keys=open(os.environ["KEYS"]).read(), audience="guarded")


@app.api_route("/{path:path}", methods=["GET", "POST"])
def who(path: str, request: Request):
    return {"user": request.state.vestibule_user}


@app.websocket("/{path:path}")
async def talk(socket: WebSocket):
    await socket.accept()
    await socket.send_text(socket.state.vestibule_user)
    await socket.close()
