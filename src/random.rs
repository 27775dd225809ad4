//! Random bytes of the operating system.

use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};

/// The system has no random numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the system has no random numbers; allow this process the system call getrandom, or to read /dev/urandom")]
pub struct NoRandomNumbers;

/// Returns random bytes.
///
/// # Errors
/// [`NoRandomNumbers`].
pub fn random<const LENGTH: usize>() -> Result<[u8; LENGTH], NoRandomNumbers> {
    let mut bytes = [0; LENGTH];
    fill(&mut bytes)?;
    Ok(bytes)
}

/// Fills a slice with random bytes.
///
/// # Errors
/// [`NoRandomNumbers`].
pub fn fill(bytes: &mut [u8]) -> Result<(), NoRandomNumbers> {
    SystemRandom::new().fill(bytes).map_err(|_| NoRandomNumbers)
}
