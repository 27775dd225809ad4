"""Runs Canaille, an OpenID provider, with one client and two users in memory.

Reads a JSON object from the first argument: `port`, `client_id`, `client_secret`, `origin` (of the application that
people sign in to) and `token_life` in seconds. Prints one JSON object a line: first `{"ready": ISSUER}`, then the
method, path, grant type and status of each request.
"""

import json
import sys

import flask
from canaille import create_app
from canaille.app import models
from canaille.backends import Backend
from werkzeug.serving import WSGIRequestHandler, make_server


class Handler(WSGIRequestHandler):
    """Logs nothing."""

    def log(self, *_):
        pass


def say(**values):
    # In one write: requests are answered in threads.
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def main():
    given = json.loads(sys.argv[1])
    host = f"127.0.0.1:{given['port']}"
    life = given["token_life"]
    app = create_app(
        {
            "SECRET_KEY": "a-key-of-the-provider",
            "SERVER_NAME": host,
            "PREFERRED_URL_SCHEME": "http",
            "OAUTH2_TOKEN_EXPIRES_IN": {"authorization_code": life, "refresh_token": life},
            "CANAILLE": {"DATABASE": "memory", "FORCE_HTTPS": False},
            # Addresses to which a sign-out may lead; also the applications that need no consent, of which this is none.
            "CANAILLE_OIDC": {"TRUSTED_DOMAINS": ["localhost"]},
        }
    )
    with app.app_context():
        for name in ["alice", "bob"]:
            user = models.User(
                formatted_name=name,
                family_name=name,
                user_name=name,
                emails=[f"{name}@example.com"],
                password="correct horse battery staple",
            )
            Backend.instance.save(user)
        client = models.Client(
            client_id=given["client_id"],
            client_secret=given["client_secret"],
            client_name="Notebooks",
            contacts=["admin@example.com"],
            redirect_uris=[f"{given['origin']}/.vestibule/callback"],
            post_logout_redirect_uris=[f"{given['origin']}/.vestibule/signed-out"],
            grant_types=["authorization_code", "refresh_token"],
            response_types=["code"],
            scope=["openid", "email", "profile"],
            token_endpoint_auth_method="client_secret_basic",
        )
        Backend.instance.save(client)
        client.audience = [client]
        Backend.instance.save(client)

    @app.after_request
    def report(response):
        request = flask.request
        say(method=request.method, path=request.path, grant=request.form.get("grant_type"), status=response.status_code)
        return response

    server = make_server("127.0.0.1", given["port"], app, threaded=True, request_handler=Handler)
    say(ready=f"http://{host}")
    server.serve_forever()


main()
