//! The command line: what each command does with the library, and what it prints.

mod check;
mod demo;
mod descriptors;
mod doctor;
mod healthcheck;
mod place;
mod run;
mod schema;
mod token;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory as _, Parser, Subcommand};

use crate::config::{self, Environment, Finding, Flags, Loaded, Report};
use crate::policy;
use crate::reload::Edition;

/// A failure of usage or configuration.
const USAGE: u8 = 2;

/// Authenticating reverse proxy for live web apps.
#[derive(Debug, Parser)]
#[command(name = "vestibule", version, about, long_about = None, after_help = EXAMPLES, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArguments,
}

const EXAMPLES: &str = "Examples:
  vestibule demo                                      everything in one process, to try
  vestibule --config vestibule.yaml                   run with a file
  vestibule check --config vestibule.yaml             what it understood; starts nothing
  vestibule check --config vestibule.yaml --online    and what each identity provider answers
  vestibule --upstream http://127.0.0.1:8000 --issuer https://issuer.example.com --audience my-api";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the proxy (also without a command)
    Run(RunArguments),
    /// Try everything: an issuer, a live notebook and the proxy in one process
    Demo(DemoArguments),
    /// Say what the configuration means; starts nothing
    Check(CheckArguments),
    /// Ask the running proxy of this configuration whether it lives: exit code 0, or 1
    Healthcheck(HealthcheckArguments),
    /// Replay the attack list against the running proxy of this configuration and its backend
    Doctor(DoctorArguments),
    /// Make or look into tokens
    #[command(subcommand)]
    Token(TokenCommand),
    /// Print the JSON Schema of the configuration file, for editors and checks
    Schema(SchemaArguments),
    /// Print what completes this command line in a shell
    Completions(CompletionsArguments),
}

#[derive(Args, Clone, Debug, Default)]
struct ConfigArguments {
    /// The configuration file [env: `VESTIBULE_CONFIG`]
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address to listen on, such as 127.0.0.1:8080 or :8080 [env: `VESTIBULE_LISTEN`]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// The backend, such as <http://127.0.0.1:8000> [env: `VESTIBULE_UPSTREAM`]
    #[arg(long, value_name = "URL")]
    upstream: Option<String>,
    /// Identity provider preset: oidc, clerk, supabase, auth0, cognito, keycloak, google, jwt, shared-secret, introspection [env: `VESTIBULE_PRESET`]
    #[arg(long, value_name = "NAME")]
    preset: Option<String>,
    /// The `iss` of its tokens, exactly [env: `VESTIBULE_ISSUER`]
    #[arg(long, value_name = "URL")]
    issuer: Option<String>,
    /// Whom its tokens are for [env: `VESTIBULE_AUDIENCE`]
    #[arg(long, value_name = "NAME")]
    audience: Option<String>,
    /// A front end's origin; repeat for more [env: `VESTIBULE_ORIGIN`]
    #[arg(long, value_name = "ORIGIN")]
    origin: Vec<String>,
    /// An address, CIDR or `private_ranges` whose forwarding fields are believed; repeat for more [env: `VESTIBULE_TRUSTED_PROXY`]
    #[arg(long, value_name = "CIDR")]
    trusted_proxy: Vec<String>,
    /// error, warn, info, debug or trace [env: `VESTIBULE_LOG_LEVEL`]
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// auto, json or pretty [env: `VESTIBULE_LOG_FORMAT`]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
}

#[derive(Args, Clone, Debug, Default)]
#[command(after_help = RUN_EXAMPLES)]
struct RunArguments {
    #[command(flatten)]
    config: ConfigArguments,
    /// Accept tokens of `vestibule token mint` too; on a loopback listener only
    #[arg(long)]
    insecure_dev: bool,
}

const RUN_EXAMPLES: &str = "SIGHUP, or a changed file, reloads the configuration; SIGTERM drains; SIGINT ends at once.

Examples:
  vestibule run --config vestibule.yaml
  vestibule run --upstream http://127.0.0.1:8000 --preset clerk --issuer https://clerk.example.com --origin https://app.example.com
  VESTIBULE_CONFIG_YAML=\"$(cat vestibule.yaml)\" vestibule run
  vestibule run --config vestibule.yaml --listen 127.0.0.1:8080 --insecure-dev      and `vestibule token mint`";

#[derive(Args, Clone, Debug, Default)]
#[command(after_help = CHECK_EXAMPLES)]
struct CheckArguments {
    #[command(flatten)]
    config: ConfigArguments,
    /// Ask each provider for its keys, its name and its clock; exit code 1 when one is not as it should be
    #[arg(long)]
    online: bool,
}

const CHECK_EXAMPLES: &str = "It prints the policy so that a reviewer can read it off: rules in order, which are public, headers, providers, what stands
around each backend. Exit code 2: the configuration is wrong; with --online 1 when a provider is.

Examples:
  vestibule check --config vestibule.yaml
  vestibule check --config vestibule.yaml --online
  diff <(vestibule check --config old.yaml) <(vestibule check --config new.yaml)";

#[derive(Args, Clone, Debug, Default)]
#[command(after_help = HEALTHCHECK_EXAMPLES)]
struct HealthcheckArguments {
    #[command(flatten)]
    config: ConfigArguments,
    /// Whether it may get traffic: a provider has keys, and no drain has begun
    #[arg(long)]
    ready: bool,
}

const HEALTHCHECK_EXAMPLES: &str =
    "It asks the first `listen` of the same file, variables and flags as `run`; flags of another process it cannot know.

Examples:
  HEALTHCHECK CMD [\"/vestibule\", \"healthcheck\"]                       in a Dockerfile
  vestibule healthcheck --config vestibule.yaml --ready               before traffic is sent";

#[derive(Args, Clone, Debug, Default)]
#[command(after_help = DOCTOR_EXAMPLES)]
struct DoctorArguments {
    #[command(flatten)]
    config: ConfigArguments,
    /// A file with a valid token: then what a verified caller can spoof is tried too
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Where the backend shows who it thinks the caller is
    #[arg(long, value_name = "PATH", default_value = "/")]
    whoami: String,
}

const DOCTOR_EXAMPLES: &str =
    "It asks only, with GET and WebSocket upgrades, and sends no secret but the token of --token-file. Run it where the proxy
runs, and once more where the backend runs. Exit code 0: nothing is red; 1: something is; 2: the configuration is wrong.

Examples:
  vestibule doctor --config vestibule.yaml
  vestibule token mint --user alice > token && vestibule doctor --config vestibule.yaml --token-file token --whoami /api/whoami
  kubectl exec deploy/notebook -c vestibule -- /vestibule doctor";

#[derive(Args, Clone, Debug)]
#[command(after_help = DEMO_EXAMPLES)]
struct DemoArguments {
    /// Address to listen on; a taken port moves to the next free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    listen: String,
    /// Your own backend, as it prints its address: with `?token=…` (Jupyter) or `?access_token=…` (marimo) behind it
    #[arg(long, value_name = "URL")]
    upstream: Option<String>,
    /// What it is: jupyter or marimo
    #[arg(long, value_name = "NAME", requires = "upstream")]
    upstream_preset: Option<String>,
    /// The only one who can sign in, instead of alice and bob
    #[arg(long, value_name = "NAME", requires = "upstream")]
    user: Option<String>,
}

const DEMO_EXAMPLES: &str = "Examples:
  vestibule demo                                      then open http://127.0.0.1:8080
  vestibule demo --listen 127.0.0.1:9000
  vestibule demo --upstream 'http://127.0.0.1:8888/lab?token=…' --upstream-preset jupyter      as Jupyter printed it
  vestibule demo --upstream http://127.0.0.1:8000 --user me";

#[derive(Args, Clone, Debug)]
#[command(after_help = COMPLETIONS_EXAMPLES)]
struct CompletionsArguments {
    /// Which shell
    shell: clap_complete::Shell,
}

const COMPLETIONS_EXAMPLES: &str = "Examples:
  vestibule completions bash > ~/.local/share/bash-completion/completions/vestibule
  vestibule completions zsh > ~/.zfunc/_vestibule
  vestibule completions fish > ~/.config/fish/completions/vestibule.fish";

#[derive(Args, Clone, Debug)]
#[command(after_help = SCHEMA_EXAMPLES)]
struct SchemaArguments {
    /// The reference of every key as Markdown instead
    #[arg(long)]
    markdown: bool,
}

const SCHEMA_EXAMPLES: &str = "Examples:
  vestibule schema > vestibule.schema.json
  # yaml-language-server: $schema=vestibule.schema.json      as the first line of vestibule.yaml";

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Make a development token, accepted by `vestibule run --insecure-dev`
    Mint(token::MintArguments),
    /// Say step by step what the verifier thinks of a token, read from a file or standard input
    Inspect(token::InspectArguments),
    /// Print the public key of signed assertions (identity.assertion), so that a backend can pin it
    AssertionKey(token::AssertionKeyArguments),
}

impl ConfigArguments {
    fn flags(&self) -> Flags {
        let all = self.clone();
        Flags {
            config: all.config,
            listen: all.listen,
            upstream: all.upstream,
            preset: all.preset,
            issuer: all.issuer,
            audience: all.audience,
            origin: all.origin,
            trusted_proxy: all.trusted_proxy,
            log_level: all.log_level,
            log_format: all.log_format,
        }
    }
}

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    // Two dependencies could each bring a provider; the first token must not be the one to find out.
    let _ = jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER.install_default();
    let cli = Cli::parse();
    match cli.command {
        None => run::run(&cli.run),
        Some(Command::Run(arguments)) => run::run(&arguments),
        Some(Command::Demo(arguments)) => demo::demo(&arguments),
        Some(Command::Check(arguments)) => check::check(&arguments),
        Some(Command::Doctor(arguments)) => doctor::doctor(&arguments),
        Some(Command::Healthcheck(arguments)) => healthcheck::healthcheck(&arguments),
        Some(Command::Schema(arguments)) => schema::schema(&arguments),
        Some(Command::Completions(arguments)) => completions(&arguments),
        Some(Command::Token(TokenCommand::Mint(arguments))) => token::mint(&arguments),
        Some(Command::Token(TokenCommand::Inspect(arguments))) => token::inspect(&arguments),
        Some(Command::Token(TokenCommand::AssertionKey(arguments))) => token::assertion_key(&arguments),
    }
}

fn completions(arguments: &CompletionsArguments) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Cli::command(), "vestibule", &mut script);
    print(&script)
}

/// To standard output; a reader that has gone, as of `| head`, wanted no more.
fn print(text: &[u8]) -> ExitCode {
    let _ = std::io::stdout().write_all(text);
    ExitCode::SUCCESS
}

/// Loads and validates; everything wrong comes at once.
fn policy(arguments: &ConfigArguments, adjust: impl FnOnce(&mut Loaded) -> Vec<Finding>) -> Result<Edition, Report> {
    let mut loaded = config::load(&arguments.flags(), &Environment::process())?;
    let mut findings = adjust(&mut loaded);
    let name = format!("{} ({})", loaded.source, loaded.digest);
    let (digest, file) = (loaded.digest.clone(), loaded.file.clone());
    let validated = policy::validate(&loaded.config).map_err(|found| findings.extend(found));
    let policy = loaded.conclude(validated, findings)?;
    Ok(Edition { policy, name, digest, file })
}

#[expect(clippy::print_stderr, reason = "the command line's own words")]
fn fail(message: &dyn std::fmt::Display, code: u8) -> ExitCode {
    eprintln!("{message}");
    ExitCode::from(code)
}
