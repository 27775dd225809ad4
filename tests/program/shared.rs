//! Several instances and an engine: what is revoked at one is revoked at all, whatever becomes of the engine meanwhile.

mod fleet;

mod commands;
mod damage;
mod engines;
mod login_sessions;
mod presence;
mod revocations;
mod scale;
mod settings;
mod starts;
