pub mod dialect;
pub mod frame;
pub mod handshake;
pub mod intake;
pub mod relay;
pub mod session;
