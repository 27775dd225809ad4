//! The program over real sockets: the built binary, a real issuer with real keys, an upstream that the
//! test scripts byte by byte, and a client that does the same.

mod support;

mod command_line;
mod configuration;
mod handover;
mod house;
mod http;
mod identity;
mod logs;
mod shutdown;
mod websocket;
