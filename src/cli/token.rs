//! `vestibule token`: makes development tokens, explains how a token is verified, and prints assertion keys.

use std::io::Read as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use clap::Args;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Map, Value, json};

use super::dev_key::{self, AUDIENCE, DevKey, ISSUER};
use super::executor::block_on;
use super::{ConfigArguments, USAGE, fail, policy, print_line};
use crate::auth::{Explanation, Token, unix_seconds};
use crate::config::{shown_argument, shown_file};
use crate::http::AssertionSigner;
use crate::policy::{AssertionKey, AssertionSpec};
use crate::reload::LoadedPolicy;
use crate::runtime::Runtime;

const MINT_EXAMPLES: &str = "Examples:
  vestibule token mint --user alice
  vestibule token mint --user alice --ttl 1m --claim org_role=admin
  curl -H \"Authorization: Bearer $(vestibule token mint --user alice)\" \\
    http://127.0.0.1:8080/";

#[derive(Args, Clone, Debug)]
#[command(after_help = MINT_EXAMPLES)]
pub(super) struct MintArguments {
    /// The user the token is for
    #[arg(long)]
    user: String,
    /// How long it is valid, such as 10m or 1h
    #[arg(long, default_value = "1h")]
    ttl: String,
    /// A further claim; the value is JSON, or else text. Repeat for more
    #[arg(long, value_name = "NAME=VALUE")]
    claim: Vec<String>,
}

const INSPECT_EXAMPLES: &str =
    "It never takes a token as an argument, because arguments are visible to every user of the machine, and never prints one. It takes the configuration flags of `vestibule run` too.

Exit code 0: accepted; 1: refused; 2: the configuration is wrong.

Examples:
  vestibule token inspect --config vestibule.yaml token.txt
  pbpaste | vestibule token inspect --config vestibule.yaml";

#[derive(Args, Clone, Debug)]
#[command(after_help = INSPECT_EXAMPLES)]
pub(super) struct InspectArguments {
    #[command(flatten)]
    config: ConfigArguments,
    /// File that holds the token; standard input without it
    file: Option<PathBuf>,
    #[arg(long, help = "Try the provider of `vestibule run --insecure-dev` too")]
    insecure_dev: bool,
}

const ASSERTION_KEY_EXAMPLES: &str = "Examples:
  vestibule token assertion-key --new /run/secrets/assertion.pem
  vestibule token assertion-key --config vestibule.yaml > assertion-keys.json";

#[derive(Args, Clone, Debug)]
#[command(after_help = ASSERTION_KEY_EXAMPLES)]
pub(super) struct AssertionKeyArguments {
    #[command(flatten)]
    config: ConfigArguments,
    /// Make a key, write it to this file (mode 0600) and print its public half; the file must not exist
    #[arg(long, value_name = "FILE")]
    new: Option<PathBuf>,
}

pub(super) fn mint(arguments: &MintArguments) -> ExitCode {
    let key = match DevKey::load_or_create() {
        Ok(key) => key,
        Err(error) => return fail(&error, 1),
    };
    let Some(ttl) = seconds(&arguments.ttl) else {
        return fail(
            &format!("--ttl \"{}\" is not a duration such as 10m or 1h", shown_argument(&arguments.ttl)),
            USAGE,
        );
    };
    let now = unix_seconds();
    let mut claims: Map<String, Value> = Map::new();
    for (name, value) in [
        ("iss", json!(ISSUER)),
        ("aud", json!(AUDIENCE)),
        ("sub", json!(arguments.user)),
        ("iat", json!(now)),
        ("exp", json!(now + ttl)),
    ] {
        claims.insert(name.to_owned(), value);
    }
    for claim in &arguments.claim {
        let Some((name, value)) = claim.split_once('=') else {
            return fail(&format!("--claim \"{}\" is not NAME=VALUE", shown_argument(claim)), USAGE);
        };
        let value = serde_json::from_str(value).unwrap_or_else(|_| json!(value));
        claims.insert(name.to_owned(), value);
    }
    let signed = jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &EncodingKey::from_ec_der(&key.pkcs8));
    match signed {
        Ok(token) => {
            print_line(token);
            ExitCode::SUCCESS
        }
        Err(error) => fail(&format!("the token could not be signed: {error}"), 1),
    }
}

fn seconds(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(char::is_alphabetic);
    let scale = match &text[digits.len()..] {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(scale).filter(|seconds| *seconds > 0 && *seconds <= 315_360_000)
}

pub(super) fn inspect(arguments: &InspectArguments) -> ExitCode {
    let text = match read_token(arguments.file.as_ref()) {
        Ok(text) => text,
        Err(error) => return fail(&error, USAGE),
    };
    let loaded =
        policy(
            &arguments.config,
            |loaded| if arguments.insecure_dev { dev_key::add_provider(loaded) } else { Vec::new() },
        );
    let LoadedPolicy { policy, name, .. } = match loaded {
        Ok(loaded) => loaded,
        Err(report) => return fail(&report, USAGE),
    };
    let text = text.trim();
    let text = text.strip_prefix("Bearer ").unwrap_or(text);
    let token = match Token::parse_padded(text, policy.limits.token_bytes) {
        Ok(token) => token,
        Err(problem) => return fail(&format!("refused: this cannot be a token: {}", token_problem(problem)), 1),
    };
    let explanation = block_on(async {
        let runtime = Arc::new(Runtime::start(policy, Arc::default(), Arc::default()));
        runtime.verifier.explain(&token).await
    });
    match explanation {
        Ok(explanation) => print_explanation(&name, text, &explanation),
        Err(error) => fail(&error, 1),
    }
}

/// Prints the public key of assertions, so that a backend can pin it.
pub(super) fn assertion_key(arguments: &AssertionKeyArguments) -> ExitCode {
    let spec = if let Some(path) = &arguments.new {
        match new_assertion_key(path) {
            Ok(spec) => spec,
            Err(problem) => return fail(&problem, 1),
        }
    } else {
        let LoadedPolicy { policy, .. } = match policy(&arguments.config, |_| Vec::new()) {
            Ok(loaded) => loaded,
            Err(report) => return fail(&report, USAGE),
        };
        match policy.assertion {
            Some(spec) if spec.is_kept => spec,
            Some(_) => {
                return fail(
                    &"identity.assertion.key_file is not set, so every start makes a key of its own; the one in force is at /assertion-keys.json of the admin listener",
                    1,
                );
            }
            None => return fail(&"identity.assertion is not set", 1),
        }
    };
    print_line(format_args!("{:#}", AssertionSigner::new(&spec).public_keys()));
    ExitCode::SUCCESS
}

fn new_assertion_key(path: &std::path::Path) -> Result<AssertionSpec, String> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let generated = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new());
    let key = generated.map_err(|_| "generating a key failed".to_owned())?;
    let encoded = STANDARD.encode(key.as_ref());
    let lines: Vec<String> =
        encoded.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line).into_owned()).collect();
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", lines.join("\n"));
    let written = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    written
        .and_then(|mut file| file.write_all(pem.as_bytes()))
        .map_err(|error| format!("{}: {error}", path.display()))?;
    AssertionKey::read(key.as_ref()).map(AssertionSpec::of_key).ok_or_else(|| "generating a key failed".to_owned())
}

fn token_problem(problem: crate::auth::token::TokenError) -> &'static str {
    use crate::auth::token::TokenError;
    match problem {
        TokenError::Empty => "nothing was read",
        TokenError::TooLong { .. } => "it is longer than limits.token_bytes",
        TokenError::Characters => "it has characters that no token has (a line break in the middle, quotes, spaces?)",
    }
}

/// The remedy for a token as an argument, which every user of the machine sees.
pub(super) const NO_ARGUMENT: &str = "give the token in a file or on standard input, not as an argument";

fn read_token(file: Option<&PathBuf>) -> Result<String, String> {
    const MAX_BYTES: u64 = 1 << 20;
    let mut text = String::new();
    let read = match file {
        // The argument may be the token itself, or a part of it.
        Some(path) => std::fs::File::open(path)
            .map_err(|error| {
                let name = path.display().to_string();
                format!("the file {} cannot be opened: {error}; {NO_ARGUMENT}", shown_file(&name))
            })?
            .take(MAX_BYTES)
            .read_to_string(&mut text)
            .map_err(|error| format!("the file cannot be read: {error}; {NO_ARGUMENT}")),
        None => std::io::stdin()
            .lock()
            .take(MAX_BYTES)
            .read_to_string(&mut text)
            .map_err(|error| format!("standard input: {error}")),
    };
    read.map(|_| text)
}

fn print_explanation(name: &str, token: &str, explanation: &Explanation) -> ExitCode {
    print_line(name);
    for (title, part) in [("header", token.split('.').next()), ("claims", token.split('.').nth(1))] {
        // The parts are printed also for a token that is refused: its claims often show why.
        let shown = part
            .and_then(|part| URL_SAFE_NO_PAD.decode(part).ok())
            .and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
        if let Some(shown) = shown {
            let pretty = serde_json::to_string_pretty(&shown).unwrap_or_default();
            print_line(format_args!("  {title:<10} (unverified) {}", pretty.replace('\n', "\n             ")));
        }
    }
    for step in &explanation.steps {
        print_line(format_args!("  ok  {:<10} {}", step.name, step.finding.replace(char::is_control, "?")));
    }
    match &explanation.verdict {
        Ok(identity) => {
            print_line(format_args!("accepted: user {} of provider {}", identity.user_id(), identity.provider().name));
            ExitCode::SUCCESS
        }
        Err(rejection) => {
            print_line(format_args!("  --  {}", rejection.outcome()));
            print_line(format_args!("refused: {}", rejection.to_string().replace(char::is_control, "?")));
            ExitCode::from(1)
        }
    }
}
