//! The access lines of sockets (docs/contract.md section 7).

use super::house;
use crate::support::client::bearer;
use crate::support::socket::Socket;

#[tokio::test]
async fn a_socket_on_a_public_route_has_the_outcome_public() {
    let mut house = house("routes: [{ path: /open, auth: none }, { path: /optional, auth: optional }]\n").await;
    for path in ["/open", "/optional"] {
        let open = Socket::open(house.proxy.address, path, &[]);
        let (client, _upstream) = tokio::join!(open, house.backend.websocket());
        drop(client);
        let parts = ["\"msg\":\"socket\"", &format!("\"path\":\"{path}\""), "\"outcome\":\"public\"", "\"status\":101"];
        house.proxy.logged("the line of an open socket", |line| parts.iter().all(|part| line.contains(part))).await;
    }
}

#[tokio::test]
async fn an_upgrade_that_the_upstream_refuses_has_the_outcome_of_the_request() {
    let mut house = house("routes: [{ path: /open, auth: none }]\n").await;
    let credential = bearer(&house.issuer.token("alice"));
    for (path, fields, outcome) in [("/open", &[][..], "public"), ("/ws", &[credential.as_str()][..], "accepted")] {
        let refusing = async {
            let mut conn = house.backend.accept().await;
            conn.request().await;
            conn.write("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").await;
        };
        let ((answer, _), ()) = tokio::join!(Socket::try_open(house.proxy.address, path, fields), refusing);
        assert_eq!(answer.status, 404);
        let parts = [
            &format!("\"path\":\"{path}\""),
            "\"answered_by\":\"upstream\"",
            &format!("\"outcome\":\"{outcome}\""),
            "\"status\":404",
        ];
        house.proxy.logged("the line of the request", |line| parts.iter().all(|part| line.contains(part))).await;
    }
}
