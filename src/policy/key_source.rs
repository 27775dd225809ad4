//! The keys of an identity provider: where they come from, the algorithms that they may sign with, and the checks of both.

use std::path::PathBuf;
use std::time::Duration;

use jsonwebtoken::Algorithm;
use url::Url;

use super::check::Check;
use super::origin::{is_loopback, missing_scheme};
use super::provider_preset::{ASYMMETRIC, DefaultKeys, Family, Preset};
use super::secret::is_published;
use super::{CertificateAuthority, Secret};
use crate::config::{self, Config, Time, shown_url};

/// The source of a provider's keys. It is never a token's own header.
#[derive(Clone, Debug, PartialEq)]
pub enum KeySource {
    /// No keys: the provider is asked about every token.
    Introspection,
    /// A shared secret for HMAC.
    Secret(Secret),
    /// PEM public keys or certificates, read at start.
    Pem(Vec<u8>),
    /// A JWKS read at start.
    Jwks(Vec<u8>),
    /// Keys that are fetched one by one: the PEM file of each lies below a URL, under its `kid`.
    ById {
        /// The URL of which they are below.
        base: Url,
        /// The time for which a key is kept.
        max_stale: Duration,
        /// A further certificate authority.
        authority: Option<CertificateAuthority>,
    },
    /// A JWKS fetched from a URL.
    Fetched {
        /// The URL of the JWKS, or of the OIDC discovery document that names it.
        url: Url,
        /// Whether `url` is a discovery document.
        discovery: bool,
        /// The time for which a set is fresh.
        refresh: Duration,
        /// The time for which the last good set is used while the provider is down.
        max_stale: Duration,
        /// An additional certificate authority.
        authority: Option<CertificateAuthority>,
        /// Whether plain http to another machine is allowed.
        allow_http: bool,
        /// A file with a token that is sent along to `url`.
        token_file: Option<PathBuf>,
    },
}

/// The longest `jwks.refresh` without a warning. Providers that rotate keys publish the next one days before.
const MOST_USUAL_REFRESH: Duration = Duration::from_secs(24 * 3_600);

/// The URL from which keys are fetched.
struct KeysUrl {
    /// The key of the configuration that it follows from.
    path: String,
    /// The text of that key.
    written: String,
    url: String,
    /// Whether it is a discovery document.
    discovery: bool,
}

impl Check {
    /// Checks where the keys of a provider come from, unless they are fetched one by one.
    pub(super) fn keys(
        &mut self,
        at: &str,
        provider: &config::Provider,
        preset: &Preset,
        issuer: Option<&str>,
    ) -> Option<KeySource> {
        let jwks = &provider.jwks;
        let named =
            [jwks.url.is_some(), jwks.file.is_some(), jwks.pem_file.is_some()].iter().filter(|named| **named).count();
        let secret_written = provider.secret.is_some() || provider.secret_file.is_some();
        if named > 1 {
            self.error(format!("{at}.jwks"), "names more than one of url, file and pem_file; keep one");
            return None;
        }
        if preset.keys == DefaultKeys::Introspection {
            if named > 0 || secret_written {
                let key = if named > 0 { "jwks" } else { "secret" };
                self.error(
                    format!("{at}.{key}"),
                    format!("preset {} asks the provider about every token, and verifies no signature", preset.name),
                );
            }
            return Some(KeySource::Introspection);
        }
        let legacy = preset.quirks.may_sign_with_secret && secret_written;
        if preset.keys == DefaultKeys::Secret || legacy {
            if named > 0 {
                self.error(
                    format!("{at}.jwks"),
                    "a shared secret and public keys in one provider invite algorithm confusion; make two providers",
                );
            }
            return self.shared_secret(at, provider);
        }
        if secret_written {
            let key = if provider.secret.is_some() { "secret" } else { "secret_file" };
            self.error(
                format!("{at}.{key}"),
                format!("preset {} verifies with public keys; use preset: shared-secret", preset.name),
            );
        }
        if jwks.token_file.is_some() && (jwks.pem_file.is_some() || jwks.file.is_some()) {
            self.error(format!("{at}.jwks.token_file"), "is sent to jwks.url alone, and nothing is fetched here");
        }
        if let Some(file) = &jwks.pem_file {
            return self.file(&format!("{at}.jwks.pem_file"), file).map(KeySource::Pem);
        }
        if let Some(file) = &jwks.file {
            return self.file(&format!("{at}.jwks.file"), file).map(KeySource::Jwks);
        }
        self.fetched(at, jwks, preset, issuer)
    }

    /// Checks keys that are fetched from a URL: the written one, or one that follows from the issuer.
    fn fetched(&mut self, at: &str, jwks: &config::Jwks, preset: &Preset, issuer: Option<&str>) -> Option<KeySource> {
        let KeysUrl { path, written, url: text, discovery } = self.keys_url(at, jwks, preset, issuer)?;
        if let Some(message) = missing_scheme(&written, None) {
            self.error(path, message);
            return None;
        }
        let url = match Url::parse(&text) {
            Ok(url) if matches!(url.scheme(), "http" | "https") && url.host_str().is_some() => url,
            _ => {
                self.error(path, format!("\"{}\" is not an http or https URL", shown_url(&text)));
                return None;
            }
        };
        self.check_fetched_safely(&path, &url, jwks);
        if jwks.refresh.is_some_and(|time| time.0 < Duration::from_secs(30)) {
            self.error(format!("{at}.jwks.refresh"), "must be at least 30s");
        }
        if let Some(refresh) = jwks.refresh.filter(|time| time.0 > MOST_USUAL_REFRESH) {
            self.warn_at(
                format!("{at}.jwks.refresh"),
                format!("a key that the provider withdraws, such as a stolen one, is accepted for up to {refresh}; write at most 1d"),
            );
        }
        let authority = self.authority(&format!("{at}.jwks.ca_file"), jwks.ca_file.as_ref());
        if jwks.token_file.is_some() && jwks.url.is_none() {
            self.error(format!("{at}.jwks.token_file"), "is sent to jwks.url alone; write that too");
        }
        if jwks.token_file.is_some() && url.scheme() == "http" && !is_loopback(&url) {
            self.error(
                format!("{at}.jwks.token_file"),
                "would go over plain http, where anyone on the way can read it; use https",
            );
        }
        Some(KeySource::Fetched {
            url,
            discovery,
            refresh: jwks.refresh.unwrap_or(Time::seconds(600)).0,
            max_stale: max_stale(jwks),
            authority,
            allow_http: jwks.allow_http,
            token_file: jwks.token_file.as_ref().map(PathBuf::from),
        })
    }

    /// Returns the URL of the keys.
    fn keys_url(&mut self, at: &str, jwks: &config::Jwks, preset: &Preset, issuer: Option<&str>) -> Option<KeysUrl> {
        if let Some(url) = &jwks.url {
            let path = format!("{at}.jwks.url");
            return Some(KeysUrl { path, written: url.clone(), url: url.clone(), discovery: false });
        }
        let discovery = preset.keys == DefaultKeys::Discovery;
        let below = match preset.keys {
            DefaultKeys::Below(path) => Some(path),
            DefaultKeys::Discovery => Some("/.well-known/openid-configuration"),
            _ => None,
        };
        match (issuer, below) {
            (Some(issuer), Some(below)) => Some(KeysUrl {
                path: format!("{at}.issuer"),
                written: issuer.to_owned(),
                // OpenID Connect Discovery section 4.1: a trailing slash of the issuer is removed first.
                url: format!("{}{below}", issuer.trim_end_matches('/')),
                discovery,
            }),
            // That the issuer is missing is reported where it is read.
            _ if preset.keys.need_issuer() => None,
            _ => {
                self.error(at, "has no keys; write jwks: { url: … }, { file: … } or { pem_file: … }");
                None
            }
        }
    }

    /// Rejects keys over plain http from another machine, unless that is allowed.
    fn check_fetched_safely(&mut self, path: &str, url: &Url, jwks: &config::Jwks) {
        if url.scheme() == "http" && !is_loopback(url) && jwks.allow_http {
            let at = path.strip_suffix(".jwks.url").or_else(|| path.strip_suffix(".issuer")).unwrap_or(path);
            let host = url.host_str().unwrap_or_default();
            self.warn_at(
                format!("{at}.jwks.allow_http"),
                format!(
                    "keys come from {host} by plain http: anyone on the network in between can replace them, and then make tokens of any user; use https if others reach that network"
                ),
            );
        } else if url.scheme() == "http" && !is_loopback(url) {
            self.error(path, "would fetch keys over plain http, where anyone on the way can replace them; use https,\nor set jwks.allow_http: true");
        }
    }

    /// Checks `signer` and `region` of a load balancer. Returns the region, if its keys have a known place.
    pub(super) fn signer_region(
        &mut self,
        at: &str,
        config: &Config,
        provider: &config::Provider,
        preset: &Preset,
    ) -> Option<String> {
        let path = format!("{at}.signer");
        if preset.family != Family::AwsAlb {
            if provider.signer.is_some() {
                self.error(path, format!("means nothing to preset {}; remove it", preset.name));
            }
            return None;
        }
        if config.trusted_proxies.is_empty() {
            self.error(
                at,
                "tokens of the load balancer count only in requests that it sent, and trusted_proxies names nobody;\nwrite trusted_proxies: [private_ranges]",
            );
        }
        let signers = provider.signer.as_ref().map_or(&[][..], |signers| &signers.0);
        if signers.is_empty() {
            self.error(at, "has no signer: every load balancer of AWS could name any user; write its ARN,\nsigner: arn:aws:elasticloadbalancing:eu-central-1:123456789012:loadbalancer/app/NAME/ID");
            return None;
        }
        let mut found = None;
        for signer in signers {
            let Some((partition, region)) = partition_and_region(signer) else {
                self.error(&path, format!("\"{signer}\" is not the ARN of an Application Load Balancer: arn:aws:elasticloadbalancing:REGION:ACCOUNT:loadbalancer/app/NAME/ID"));
                return None;
            };
            if provider.region.as_deref().is_some_and(|written| written != region) {
                self.error(&path, format!("is in the region {region}, and region says another; keep one of the two"));
            }
            if found.as_ref().is_some_and(|(_, other)| *other != region) {
                self.error(
                    &path,
                    "names load balancers of two regions, whose keys are in two places; make two providers",
                );
            }
            found = Some((partition, region));
        }
        let (partition, region) = found?;
        if partition != "aws" && provider.jwks.url.is_none() {
            self.error(&path, format!("is in {partition}, whose keys have another place; write it as jwks: {{ url: … }}, without the key's id"));
            return None;
        }
        Some(region.to_owned())
    }

    /// The place of the keys that a load balancer's tokens name.
    pub(super) fn keys_by_id(
        &mut self,
        at: &str,
        provider: &config::Provider,
        region: Option<String>,
    ) -> Option<KeySource> {
        let jwks = &provider.jwks;
        for (key, is_written) in [
            ("file", jwks.file.is_some()),
            ("pem_file", jwks.pem_file.is_some()),
            ("token_file", jwks.token_file.is_some()),
            ("refresh", jwks.refresh.is_some()),
        ] {
            if is_written {
                self.error(
                    format!("{at}.jwks.{key}"),
                    "means nothing to preset aws-alb, which fetches each key when a token names it; remove it",
                );
            }
        }
        if provider.secret.is_some() || provider.secret_file.is_some() {
            self.error(format!("{at}.secret"), "means nothing to preset aws-alb; remove it");
        }
        let text = match &jwks.url {
            Some(url) => url.clone(),
            None => format!("https://public-keys.auth.elb.{}.amazonaws.com", region?),
        };
        let path = format!("{at}.jwks.url");
        let Some(base) = Url::parse(&text).ok().filter(|url| {
            matches!(url.scheme(), "http" | "https") && url.host_str().is_some() && url.query().is_none()
        }) else {
            self.error(path, format!("\"{}\" is not an http or https URL without a query", shown_url(&text)));
            return None;
        };
        self.check_fetched_safely(&path, &base, jwks);
        let authority = self.authority(&format!("{at}.jwks.ca_file"), jwks.ca_file.as_ref());
        let max_stale = max_stale(jwks);
        Some(KeySource::ById { base, max_stale, authority })
    }

    /// Reads the secret of HMAC signatures.
    fn shared_secret(&mut self, at: &str, provider: &config::Provider) -> Option<KeySource> {
        let (path, file_path) = (format!("{at}.secret"), format!("{at}.secret_file"));
        let Some(bytes) = self.secret(&path, provider.secret.as_ref(), &file_path, provider.secret_file.as_ref())
        else {
            if provider.secret.is_none() && provider.secret_file.is_none() {
                self.error(at, "has no secret; write secret_file: … or secret: ${SESSION_SECRET}");
            }
            return None;
        };
        let path = if provider.secret.is_some() { path } else { file_path };
        if self.is_insecure_dev && is_published(&bytes) {
            self.warn_at(
                path,
                "is published in documentation: under --insecure-dev anyone on this machine can sign with it",
            );
        } else {
            self.hard_to_guess(&path, &bytes);
        }
        Some(KeySource::Secret(Secret::new(bytes)))
    }

    /// Checks the algorithms by which tokens may be signed.
    pub(super) fn algorithms(&mut self, at: &str, provider: &config::Provider, preset: &Preset) -> Vec<Algorithm> {
        let legacy =
            preset.quirks.may_sign_with_secret && (provider.secret.is_some() || provider.secret_file.is_some());
        let Some(written) = &provider.algorithms else {
            return if legacy { vec![Algorithm::HS256] } else { preset.algorithms.to_vec() };
        };
        let allowed: &[Algorithm] = if preset.keys == DefaultKeys::Secret || legacy {
            &[Algorithm::HS256, Algorithm::HS384, Algorithm::HS512]
        } else {
            &ASYMMETRIC
        };
        let mut out = Vec::new();
        for (index, name) in written.iter().enumerate() {
            if let Some(algorithm) = name.parse::<Algorithm>().ok().filter(|algorithm| allowed.contains(algorithm)) {
                out.push(algorithm);
            } else {
                let known: Vec<String> = allowed.iter().map(|a| format!("{a:?}")).collect();
                self.error(
                    format!("{at}.algorithms[{index}]"),
                    format!("\"{name}\" is not one of {}", known.join(", ")),
                );
            }
        }
        if written.is_empty() {
            self.error(format!("{at}.algorithms"), "is empty: no token could be accepted");
        }
        out
    }
}

/// Returns the time for which keys are used that could not be fetched again.
fn max_stale(jwks: &config::Jwks) -> Duration {
    jwks.max_stale.unwrap_or(Time::seconds(86_400)).0
}

/// Reads partition and region of the ARN of an Application Load Balancer.
fn partition_and_region(arn: &str) -> Option<(&str, &str)> {
    let mut parts = arn.splitn(6, ':');
    let mut next = || parts.next().unwrap_or_default();
    let (prefix, partition, service, region, account, resource) = (next(), next(), next(), next(), next(), next());
    let is_name = |text: &str| {
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    let is_balancer = resource.strip_prefix("loadbalancer/app/").is_some_and(|name| name.contains('/'))
        && resource.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'-'));
    let fits = prefix == "arn"
        && is_name(partition)
        && service == "elasticloadbalancing"
        && is_name(region)
        && account.len() == 12
        && account.bytes().all(|b| b.is_ascii_digit())
        && is_balancer;
    fits.then_some((partition, region))
}
