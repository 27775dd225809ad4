import os, secrets

from fastapi import Depends, FastAPI, Header, HTTPException, WebSocket, WebSocketException
from starlette.requests import HTTPConnection

PUBLIC = {"/health"}   # the secret comes for verified callers only, and a load balancer is none

def only_vestibule(connection: HTTPConnection):
    scope = connection.scope
    if scope["type"] == "http" and scope["path"] in PUBLIC:
        return
    sent = connection.headers.get("x-backend-secret", "")
    if not secrets.compare_digest(sent.encode(), os.environ["BACKEND_SECRET"].encode()):
        raise HTTPException(403) if scope["type"] == "http" else WebSocketException(1008)

app = FastAPI(dependencies=[Depends(only_vestibule)])

@app.get("/health")
def health():
    return {"status": "ok"}

@app.get("/api/cells")
def cells(x_user_id: str = Header()):
    return {"user": x_user_id}

@app.websocket("/ws/{notebook}")
async def run(socket: WebSocket, notebook: str):
    await socket.accept()
    user = socket.headers["x-user-id"]
    async for text in socket.iter_text():
        await socket.send_text(f"{user}: {text}")
