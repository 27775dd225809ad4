//! The access lines of sockets (docs/contract.md section 7).

use super::fixture;
use crate::support::client::bearer;
use crate::support::socket::Socket;

#[tokio::test]
async fn a_socket_on_a_public_route_has_the_outcome_public() {
    let fixture = fixture("routes: [{ path: /open, auth: none }, { path: /optional, auth: optional }]\n").await;
    for path in ["/open", "/optional"] {
        let open = Socket::open(fixture.proxy.address, path, &[]);
        let (client, _upstream) = tokio::join!(open, fixture.backend.websocket());
        drop(client);
        let parts = ["\"msg\":\"socket\"", &format!("\"path\":\"{path}\""), "\"outcome\":\"public\"", "\"status\":101"];
        fixture.proxy.logged("the line of an open socket", |line| parts.iter().all(|part| line.contains(part))).await;
    }
}

#[tokio::test]
async fn an_upgrade_that_the_upstream_refuses_has_the_outcome_of_the_request() {
    let fixture = fixture("routes: [{ path: /open, auth: none }]\n").await;
    let credential = bearer(&fixture.issuer.token("alice"));
    for (path, fields, outcome) in [("/open", &[][..], "public"), ("/ws", &[credential.as_str()][..], "accepted")] {
        let refusing = async {
            let mut conn = fixture.backend.accept().await;
            conn.request().await;
            conn.write("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").await;
        };
        let ((answer, _), ()) = tokio::join!(Socket::try_open(fixture.proxy.address, path, fields), refusing);
        assert_eq!(answer.status, 404);
        let parts = [
            &format!("\"path\":\"{path}\""),
            "\"answered_by\":\"upstream\"",
            &format!("\"outcome\":\"{outcome}\""),
            "\"status\":404",
        ];
        fixture.proxy.logged("the line of the request", |line| parts.iter().all(|part| line.contains(part))).await;
    }
}
