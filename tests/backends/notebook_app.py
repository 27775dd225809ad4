"""The kind of backend Vestibule is made for: a live notebook that believes X-User-Id and nothing else."""

import asyncio
import json

from fastapi import FastAPI, Header, HTTPException, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse

app = FastAPI()
notebooks = {"n1": "alice", "n2": "bob", "n3": "alice"}
sockets: dict[str, list[WebSocket]] = {}


def owned(notebook: str, user: str) -> None:
    if notebook not in notebooks:
        raise HTTPException(404, "no such notebook")
    if notebooks[notebook] != user:
        raise HTTPException(403, "another user's notebook")


@app.get("/health")
def health():
    return {"status": "ok"}


# The collection lives under a trailing slash; without it FastAPI redirects with an absolute Location.
@app.get("/api/notebooks/")
def list_notebooks(x_user_id: str = Header()):
    return sorted(name for name, owner in notebooks.items() if owner == x_user_id)


@app.get("/api/notebooks/{notebook}")
def read_notebook(notebook: str, x_user_id: str = Header()):
    owned(notebook, x_user_id)
    return {"id": notebook, "owner": x_user_id}


@app.post("/api/notebooks/{notebook}/cells/{cell}/run")
async def run_cell(notebook: str, cell: int, x_user_id: str = Header()):
    owned(notebook, x_user_id)
    # Pushed before the answer that it is caused by; front ends rely on the order.
    for socket in sockets.get(x_user_id, []):
        await socket.send_text(json.dumps({"type": "cell_updated", "notebook": notebook, "cell": cell}))
    return {"cell": cell, "status": "done"}


@app.post("/api/chat")
async def chat(x_user_id: str = Header()):
    async def words():
        for word in ["hello", x_user_id, "and", "goodbye"]:
            yield f"{word}\n"
            await asyncio.sleep(0.05)

    return StreamingResponse(words(), media_type="text/plain")


@app.websocket("/ws/notebooks/{notebook}")
async def notebook_socket(socket: WebSocket, notebook: str):
    user = socket.headers.get("x-user-id", "")
    if notebooks.get(notebook) != user:
        await socket.close()
        return
    await socket.accept()
    sockets.setdefault(user, []).append(socket)
    try:
        while True:
            message = json.loads(await socket.receive_text())
            await socket.send_text(json.dumps({"type": "echo", "user": user, "message": message}))
    except WebSocketDisconnect:
        sockets[user].remove(socket)
