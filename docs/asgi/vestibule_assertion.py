"""Verifies X-Vestibule-Assertion in an ASGI backend (FastAPI, Starlette, Quart, Django).

    app.add_middleware(AssertionMiddleware, keys=open("assertion-keys.json").read(), audience="notebook")

Every request and every WebSocket must carry an assertion that Vestibule signed for this backend, this method and this
path, and that is not older than a minute. Any other gets 403, and the application does not see it. The user is in
`scope["state"]["vestibule_user"]` (in FastAPI `request.state.vestibule_user`).

`keys` is the output of `vestibule token assertion-key`. It needs PyJWT with cryptography.
"""

import json

import jwt

HEADER = b"x-vestibule-assertion"


class AssertionMiddleware:
    def __init__(self, app, keys, audience, header=HEADER):
        self.app = app
        self.keys = {key.key_id: key.key for key in jwt.PyJWKSet.from_dict(json.loads(keys)).keys}
        self.audience = audience
        self.header = header.lower()

    async def __call__(self, scope, receive, send):
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        try:
            user = self.user(scope)
        except Exception:  # any defect of the assertion is a refusal
            return await refuse(scope, receive, send)
        scope.setdefault("state", {})["vestibule_user"] = user
        return await self.app(scope, receive, send)

    def user(self, scope):
        (assertion,) = [value for name, value in scope["headers"] if name.lower() == self.header]
        key = self.keys[jwt.get_unverified_header(assertion)["kid"]]
        claims = jwt.decode(
            assertion,
            key,
            algorithms=["ES256"],
            audience=self.audience,
            issuer="vestibule",
            leeway=5,
            options={"require": ["exp", "iat", "sub", "aud", "iss", "jti"]},
        )
        # The path as it was sent: `scope["path"]` is decoded.
        path = scope["raw_path"].split(b"?")[0].decode("ascii")
        if claims["method"] != scope.get("method", "GET") or claims["path"] != path:
            raise ValueError("an assertion for another request")
        return claims["sub"]


async def refuse(scope, receive, send):
    if scope["type"] == "websocket":
        await receive()
        # Closed before it was accepted: the server answers 403.
        await send({"type": "websocket.close", "code": 1008})
        return
    body = b'{"detail":"Access denied."}'
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": body})
