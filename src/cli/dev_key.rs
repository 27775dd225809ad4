//! The key that signs development tokens (`vestibule token mint`), and the provider that accepts them
//! (`vestibule run --insecure-dev`).

use std::path::{Path, PathBuf};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::config::{Finding, Jwks, Loaded, OneOrMany, Provider};

/// The issuer of development tokens. The domain can never be registered (RFC 6761).
pub(super) const ISSUER: &str = "https://dev.vestibule.invalid";
/// The audience of development tokens.
pub(super) const AUDIENCE: &str = "dev";

#[derive(Debug, thiserror::Error)]
pub(super) enum DevKeyError {
    #[error("there is no directory for the development key: set XDG_STATE_HOME or HOME")]
    NoDirectory,
    #[error("{path}: {source}", path = path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{path} is not a development key; remove it and mint again", path = path.display())]
    NotAKey { path: PathBuf },
    #[error("generating a key failed")]
    Generation,
}

/// The development key: created at its first use, readable by its owner alone.
pub(super) struct DevKey {
    /// The private key, PKCS#8.
    pub(super) pkcs8: Vec<u8>,
    /// The file of the public key.
    public_pem: PathBuf,
}

impl DevKey {
    fn path() -> Result<PathBuf, DevKeyError> {
        let state = std::env::var_os("XDG_STATE_HOME").filter(|value| !value.is_empty()).map(PathBuf::from);
        let home = || {
            std::env::var_os("HOME")
                .filter(|value| !value.is_empty())
                .map(|home| PathBuf::from(home).join(".local/state"))
        };
        Ok(state.or_else(home).ok_or(DevKeyError::NoDirectory)?.join("vestibule").join("dev-key"))
    }

    /// Reads the key, or makes it at its first use.
    pub(super) fn load_or_create() -> Result<Self, DevKeyError> {
        let path = Self::path()?;
        let io = |source| DevKeyError::Io { path: path.clone(), source };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(io)?;
        }
        if !path.exists() {
            let fresh = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
                .map_err(|_| DevKeyError::Generation)?;
            create(&path, STANDARD.encode(fresh.as_ref()).as_bytes()).map_err(io)?;
        }
        let text = std::fs::read_to_string(&path).map_err(io)?;
        let pkcs8 = STANDARD.decode(text.trim()).map_err(|_| DevKeyError::NotAKey { path: path.clone() })?;
        let public_pem = path.with_extension("pub.pem");
        let pem = public_pem_of(&pkcs8).ok_or_else(|| DevKeyError::NotAKey { path: path.clone() })?;
        // A process that runs with this key watches the file: a write that changes nothing would make it reload, and
        // each reload comes here.
        if !std::fs::read_to_string(&public_pem).is_ok_and(|kept| kept == pem) {
            replace(&public_pem, pem.as_bytes())
                .map_err(|source| DevKeyError::Io { path: public_pem.clone(), source })?;
        }
        Ok(Self { pkcs8, public_pem })
    }
}

/// Creates a file, unless there is one. It is whole as soon as it has its name, so that of two first uses at once both read
/// the key of one.
fn create(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let beside = write_beside(path, content)?;
    let named = std::fs::hard_link(&beside, path);
    std::fs::remove_file(&beside)?;
    match named {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Puts a file in the place of another one. A reader meanwhile gets the one or the other.
fn replace(path: &Path, content: &[u8]) -> std::io::Result<()> {
    std::fs::rename(write_beside(path, content)?, path)
}

/// Writes a file of this process beside another one, which only its owner may read, and returns its path.
fn write_beside(path: &Path, content: &[u8]) -> std::io::Result<PathBuf> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".new-{}", std::process::id()));
    let beside = PathBuf::from(name);
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    file.write_all(content)?;
    Ok(beside)
}

fn public_pem_of(pkcs8: &[u8]) -> Option<String> {
    use aws_lc_rs::encoding::AsDer as _;
    use aws_lc_rs::signature::KeyPair as _;
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8).ok()?;
    let der: aws_lc_rs::encoding::PublicKeyX509Der<'_> = pair.public_key().as_der().ok()?;
    Some(format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der.as_ref())))
}

/// Adds the provider of `run --insecure-dev` to a configuration that listens on loopback only.
pub(super) fn add_provider(loaded: &mut Loaded) -> Vec<Finding> {
    let is_reachable = |listen: &crate::config::Listen| {
        let host = listen.address.rsplit_once(':').map_or("", |(host, _)| host);
        !crate::policy::is_loopback_name(host)
    };
    if loaded.config.listen.iter().any(is_reachable) {
        return vec![Finding::new(
            "listen",
            "--insecure-dev accepts tokens that anyone on this machine can mint; listen on 127.0.0.1 only",
        )];
    }
    match DevKey::load_or_create() {
        Ok(key) => {
            loaded.config.providers.push(Provider {
                name: Some("dev".to_owned()),
                preset: Some("jwt".to_owned()),
                issuer: Some(ISSUER.to_owned()),
                jwks: Jwks { pem_file: Some(key.public_pem.display().to_string()), ..Jwks::default() },
                algorithms: Some(vec!["ES256".to_owned()]),
                audience: Some(OneOrMany(vec![AUDIENCE.to_owned()])),
                ..Provider::default()
            });
            // A development token may name any user of any provider.
            loaded.config.shared_user_ids = true;
            loaded.config.insecure_dev = true;
            Vec::new()
        }
        Err(error) => vec![Finding::new("", error.to_string())],
    }
}
