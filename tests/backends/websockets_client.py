"""The `websockets` package as it comes: compression offered, its own pings, its own reconnect."""

import asyncio
import json
import os

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

URL = os.environ["SOCKET_URL"]
TOKENS = os.environ["TOKENS"].split(",")  # one that ends within seconds, then a good one


async def in_band() -> None:
    tokens = iter(TOKENS)
    codes = []
    async for socket in connect(URL):
        try:
            await socket.send(json.dumps({"type": "authenticate", "token": next(tokens)}))
            said = json.loads(await socket.recv())
            assert said["type"] == "authenticated" and said["user_id"] == "alice", said
            for number in range(200):
                await socket.send(json.dumps({"n": number, "pad": "x" * 2000}))
                said = json.loads(await socket.recv())
                # On a busy machine the first token ends before all of them were sent.
                if not codes and number > 0 and said["message"] == "Token expired":
                    break
                assert said["message"]["n"] == number
            else:
                await (await socket.ping())
                if codes:
                    return await socket.close()
                assert json.loads(await socket.recv())["message"] == "Token expired"
            await socket.recv()
        except ConnectionClosed as closed:
            codes.append(closed.rcvd.code)
            assert codes == [4401], codes


async def by_header() -> None:
    async with connect(URL, additional_headers={"Authorization": f"Bearer {TOKENS[1]}"}) as socket:
        await socket.send('{"hello":1}')
        assert json.loads(await socket.recv()) == {"type": "echo", "user": "alice", "message": {"hello": 1}}
    try:
        await connect(URL, additional_headers={"Authorization": "Bearer garbage"})
        raise AssertionError("a refused token opened a socket")
    except InvalidStatus as refused:
        assert refused.response.status_code == 401
        assert json.loads(refused.response.body)["code"] == "invalid_token"


asyncio.run(in_band())
asyncio.run(by_header())
