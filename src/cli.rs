//! The command line: the flags of each command, and the calls and output behind them.

mod check;
mod demo;
mod descriptors;
mod dev_key;
mod doctor;
mod endpoint;
mod executor;
mod healthcheck;
mod output;
mod revoke;
mod run;
mod schema;
mod token;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use self::output::{print, print_error, print_line};
use crate::auth;
use crate::config::{self, Environment, Finding, Flags, Loaded, Report};
use crate::policy::{self, Policy};
use crate::reload::LoadedPolicy;

/// A failure of usage or configuration.
const USAGE: u8 = 2;

/// Authenticating reverse proxy for live web apps.
#[derive(Debug, Parser)]
#[command(name = "vestibule", version, about, long_about = None, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArguments,
}

// Every line of an example is at most 78 columns, so that no terminal of 80 breaks it, and can be pasted into a shell.
const EXAMPLES: &str = "Without a command it runs the proxy: `vestibule run --help` lists those options.

Examples:
  # everything in one process, to try
  vestibule demo
  # run with a file
  vestibule --config vestibule.yaml
  # print what the configuration means; starts nothing
  vestibule check --config vestibule.yaml
  # run without a file
  vestibule --upstream http://127.0.0.1:8000 \\
    --issuer https://issuer.example.com --audience my-api";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the proxy (also without a command)
    Run(RunArguments),
    /// Try everything: an issuer, a live notebook and the proxy in one process
    Demo(DemoArguments),
    /// Print what the configuration means; starts nothing
    Check(CheckArguments),
    /// Ask the running proxy whether it is healthy: exit code 0 or 1
    Healthcheck(HealthcheckArguments),
    /// Test the running proxy and its backend against a list of attacks
    Doctor(DoctorArguments),
    /// End a user, a session or a token at every instance (needs `shared`)
    Revoke(RevokeArguments),
    /// Make and inspect tokens, print assertion keys
    #[command(subcommand)]
    Token(TokenCommand),
    /// Print the JSON Schema of the configuration file, for editors and checks
    Schema(SchemaArguments),
    /// Print a shell completion script
    Completions(CompletionsArguments),
}

/// The flags that name the configuration, or replace it.
#[derive(Args, Clone, Debug, Default)]
struct ConfigArguments {
    #[arg(short, long, value_name = "FILE", help = "Configuration file [env: VESTIBULE_CONFIG]")]
    config: Option<PathBuf>,
    #[arg(
        long,
        value_name = "ADDRESS",
        help = "Address to listen on, such as 127.0.0.1:8080 or :8080 [env: VESTIBULE_LISTEN]"
    )]
    listen: Option<String>,
    #[arg(
        long,
        value_name = "URL",
        help = "Backend to protect, such as http://127.0.0.1:8000 [env: VESTIBULE_UPSTREAM]"
    )]
    upstream: Option<String>,
    #[arg(long, value_name = "NAME", help = "What the backend is: jupyter or marimo [env: VESTIBULE_UPSTREAM_PRESET]")]
    upstream_preset: Option<String>,
    #[arg(
        long,
        value_name = "NAME",
        help = "Identity provider: oidc, clerk, supabase, auth0, cognito, keycloak, entra or google; the other presets need a file [env: VESTIBULE_PRESET]"
    )]
    preset: Option<String>,
    #[arg(
        long,
        value_name = "URL",
        help = "Issuer of the provider's tokens, exactly as in their `iss` [env: VESTIBULE_ISSUER]"
    )]
    issuer: Option<String>,
    #[arg(long, value_name = "NAME", help = "Audience (`aud`) of the provider's tokens [env: VESTIBULE_AUDIENCE]")]
    audience: Option<String>,
    #[arg(
        long,
        value_name = "ORIGIN",
        help = "Origin of a front end, such as https://app.example.com; repeat for more [env: VESTIBULE_ORIGIN]"
    )]
    origin: Vec<String>,
    #[arg(
        long,
        value_name = "CIDR",
        help = "Address, CIDR or private_ranges whose X-Forwarded-* fields are trusted; repeat for more [env: VESTIBULE_TRUSTED_PROXY]"
    )]
    trusted_proxy: Vec<String>,
    #[arg(long, value_name = "LEVEL", help = "error, warn, info, debug or trace [env: VESTIBULE_LOG_LEVEL]")]
    log_level: Option<String>,
    #[arg(long, value_name = "FORMAT", help = "auto, json or pretty [env: VESTIBULE_LOG_FORMAT]")]
    log_format: Option<String>,
}

/// The flags of [`ConfigArguments`] that only `run` lists. Every command that reads the configuration takes them.
const SETTINGS: [&str; 10] = [
    "listen",
    "upstream",
    "upstream_preset",
    "preset",
    "issuer",
    "audience",
    "origin",
    "trusted_proxy",
    "log_level",
    "log_format",
];

#[derive(Args, Clone, Debug, Default)]
#[command(after_help = RUN_EXAMPLES)]
struct RunArguments {
    #[command(flatten)]
    config: ConfigArguments,
    #[arg(long, help = "Accept tokens of `vestibule token mint` too; on loopback listeners only")]
    insecure_dev: bool,
}

const RUN_EXAMPLES: &str = "SIGHUP, or a changed file, reloads the configuration. SIGTERM drains: requests finish, WebSockets close. SIGINT (Ctrl-C) does so without drain.delay. A second signal ends the process at once.

Examples:
  vestibule run --config vestibule.yaml
  vestibule run --upstream http://127.0.0.1:8000 --preset clerk \\
    --issuer https://clerk.example.com --origin https://app.example.com
  VESTIBULE_CONFIG_YAML=\"$(cat vestibule.yaml)\" vestibule run
  # for development: accept the tokens of `vestibule token mint` too
  vestibule run --config vestibule.yaml --listen 127.0.0.1:8080 --insecure-dev";

#[derive(Args, Clone, Debug, Default)]
#[command(after_help = CHECK_EXAMPLES)]
struct CheckArguments {
    #[command(flatten)]
    config: ConfigArguments,
    /// Ask each provider for its keys, its issuer and its clock
    #[arg(long)]
    online: bool,
}

const CHECK_EXAMPLES: &str = "It prints the policy: rules in order, which are public, headers, providers, and how each upstream is protected from direct access. It loads the certificates of TLS listeners as the start does. It takes the configuration flags of `vestibule run` too.

Exit code 0: valid; 2: the configuration is wrong; with --online 1: a provider is.

Examples:
  vestibule check --config vestibule.yaml
  vestibule check --config vestibule.yaml --online
  diff <(vestibule check -c old.yaml) <(vestibule check -c new.yaml)";

#[derive(Args, Clone, Debug, Default)]
#[command(after_help = HEALTHCHECK_EXAMPLES)]
struct HealthcheckArguments {
    #[command(flatten)]
    config: ConfigArguments,
    /// Ask whether it can take traffic: a provider has keys, and no drain has begun
    #[arg(long)]
    ready: bool,
}

const HEALTHCHECK_EXAMPLES: &str = "It asks the first `listen` address of the configuration: file, variables, and the configuration flags of `vestibule run`. Give it the same ones as the running proxy.

Exit code 0: yes; 1: no, or no answer; 2: the configuration does not say where to ask.

Examples:
  vestibule healthcheck --config vestibule.yaml
  vestibule healthcheck --config vestibule.yaml --ready

In a Dockerfile:
  HEALTHCHECK CMD [\"/vestibule\", \"healthcheck\"]";

#[derive(Args, Clone, Debug, Default)]
#[command(after_help = DOCTOR_EXAMPLES)]
struct DoctorArguments {
    #[command(flatten)]
    config: ConfigArguments,
    /// File with a valid token; tries what a signed-in caller could spoof too
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    #[arg(
        long,
        value_name = "PATH",
        help = "Path at which the backend shows who it thinks the caller is; found by itself for Jupyter, marimo and FastAPI"
    )]
    whoami: Option<String>,
}

const DOCTOR_EXAMPLES: &str = "It sends GET requests, WebSocket upgrades, and two POST requests to the sign-in that must be refused. With `shared` it revokes a session that does not exist. It sends no secret but the token of --token-file. Run it where the proxy runs, and once more where the backend runs. It takes the configuration flags of `vestibule run` too.

Exit code 0: nothing is red; 1: something is; 2: the configuration is wrong.

Examples:
  vestibule doctor --config vestibule.yaml
  vestibule token mint --user alice > token.txt
  vestibule doctor --config vestibule.yaml --token-file token.txt \\
    --whoami /api/whoami
  kubectl exec deploy/notebook -c vestibule -- /vestibule doctor";

#[derive(Args, Clone, Debug, Default)]
#[command(after_help = REVOKE_EXAMPLES)]
struct RevokeArguments {
    #[command(flatten)]
    config: ConfigArguments,
    /// User id, as it appears in the log: ends everything that this user holds until now
    #[arg(long, value_name = "ID", group = "target")]
    user: Option<String>,
    /// Session id of the provider (`sid`)
    #[arg(long, value_name = "ID", group = "target")]
    sid: Option<String>,
    /// Token id (`jti`)
    #[arg(long, value_name = "ID", group = "target")]
    jti: Option<String>,
}

const REVOKE_EXAMPLES: &str = "It writes through the engine of `shared`, with the configuration of the running instances, from any place that reaches the engine. Without `shared` revoke at the control listener.

Exit code 0: written; 1: not written; 2: the configuration or the arguments are wrong.

Examples:
  vestibule revoke --config vestibule.yaml --user user_2abc
  vestibule revoke --config vestibule.yaml --sid sess_2def";

#[derive(Args, Clone, Debug)]
#[command(after_help = DEMO_EXAMPLES)]
struct DemoArguments {
    /// Address to listen on; a taken port moves to the next free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    listen: String,
    #[arg(
        long,
        value_name = "URL",
        help = "Your own backend, as it prints its address: with ?token=… (Jupyter) or ?access_token=… (marimo)"
    )]
    upstream: Option<String>,
    /// What the backend is
    #[arg(long, value_name = "NAME", requires = "upstream", value_parser = ["jupyter", "marimo"])]
    upstream_preset: Option<String>,
    /// The only user who can sign in, instead of alice and bob
    #[arg(long, value_name = "NAME", requires = "upstream")]
    user: Option<String>,
}

const DEMO_EXAMPLES: &str = "Examples:
  # then open http://127.0.0.1:8080
  vestibule demo
  vestibule demo --listen 127.0.0.1:9000
  # before Jupyter: the address as Jupyter printed it
  vestibule demo --upstream 'http://127.0.0.1:8888/lab?token=…' \\
    --upstream-preset jupyter
  vestibule demo --upstream http://127.0.0.1:8000 --user me";

#[derive(Args, Clone, Debug)]
#[command(after_help = COMPLETIONS_EXAMPLES)]
struct CompletionsArguments {
    /// Which shell
    shell: clap_complete::Shell,
}

const COMPLETIONS_EXAMPLES: &str = "Examples:
  vestibule completions bash \\
    > ~/.local/share/bash-completion/completions/vestibule
  vestibule completions zsh > ~/.zfunc/_vestibule
  vestibule completions fish > ~/.config/fish/completions/vestibule.fish";

#[derive(Args, Clone, Debug)]
#[command(after_help = SCHEMA_EXAMPLES)]
struct SchemaArguments {
    /// Print the reference of every key as Markdown instead
    #[arg(long)]
    markdown: bool,
}

const SCHEMA_EXAMPLES: &str = "Examples:
  vestibule schema > vestibule.schema.json
  vestibule schema --markdown > reference.md

As the first line of vestibule.yaml, so that an editor checks it:
  # yaml-language-server: $schema=vestibule.schema.json";

#[derive(Debug, Subcommand)]
enum TokenCommand {
    #[command(about = "Make a development token, accepted by `vestibule run --insecure-dev`")]
    Mint(token::MintArguments),
    /// Print step by step how a token is verified; reads a file or standard input
    Inspect(token::InspectArguments),
    /// Print the public key of signed assertions (identity.assertion), for a backend to pin
    AssertionKey(token::AssertionKeyArguments),
}

impl ConfigArguments {
    fn flags(&self) -> Flags {
        let all = self.clone();
        Flags {
            config: all.config,
            listen: all.listen,
            upstream: all.upstream,
            upstream_preset: all.upstream_preset,
            preset: all.preset,
            issuer: all.issuer,
            audience: all.audience,
            origin: all.origin,
            trusted_proxy: all.trusted_proxy,
            log_level: all.log_level,
            log_format: all.log_format,
        }
    }

    /// Returns the path of the configuration file, if there is one.
    fn file(&self) -> Option<PathBuf> {
        config::named_file(&self.flags(), &Environment::process())
    }
}

/// Returns the command line as it is parsed and printed: the settings of the configuration are listed by `run` alone.
fn command_line() -> clap::Command {
    // `--config` stays listed everywhere.
    let hidden = |command: clap::Command| {
        SETTINGS.iter().fold(command, |command, name| command.mut_arg(name, |arg| arg.hide(true)))
    };
    let token =
        |command: clap::Command| command.mut_subcommand("inspect", hidden).mut_subcommand("assertion-key", hidden);
    let mut command = hidden(Cli::command()).mut_arg("insecure_dev", |arg| arg.hide(true));
    for name in ["check", "healthcheck", "doctor", "revoke"] {
        command = command.mut_subcommand(name, hidden);
    }
    let revoke = |command: clap::Command| {
        let help = "Issuer of the user, session or token, where there are several providers";
        command.mut_arg("issuer", |arg| arg.hide(false).help(help))
    };
    command.mut_subcommand("token", token).mut_subcommand("revoke", revoke)
}

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    // Two dependencies could each bring a provider; the first token must not be the one to find out.
    let _ = jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER.install_default();
    let parsed = command_line().try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => return usage_error(&error),
    };
    let code = match cli.command {
        None => run::run(&cli.run),
        Some(Command::Run(arguments)) => run::run(&arguments),
        Some(Command::Demo(arguments)) => demo::demo(&arguments),
        Some(Command::Check(arguments)) => check::check(&arguments),
        Some(Command::Doctor(arguments)) => doctor::doctor(&arguments),
        Some(Command::Healthcheck(arguments)) => healthcheck::healthcheck(&arguments),
        Some(Command::Revoke(arguments)) => revoke::revoke(&arguments),
        Some(Command::Schema(arguments)) => schema::schema(&arguments),
        Some(Command::Completions(arguments)) => completions(&arguments),
        Some(Command::Token(TokenCommand::Mint(arguments))) => token::mint(&arguments),
        Some(Command::Token(TokenCommand::Inspect(arguments))) => token::inspect(&arguments),
        Some(Command::Token(TokenCommand::AssertionKey(arguments))) => token::assertion_key(&arguments),
    };
    output::exit_code(code)
}

/// Prints what is wrong with the command line, or the help that it asks for. An argument that may be a secret is not
/// repeated.
fn usage_error(error: &clap::Error) -> ExitCode {
    let secrets = std::env::args_os().skip(1).flat_map(|argument| {
        let argument = argument.to_string_lossy().into_owned();
        let value = argument.split_once('=').map(|(_, value)| value.to_owned());
        [Some(argument), value].into_iter().flatten().filter(|text| config::may_be_secret(text)).collect::<Vec<_>>()
    });
    let secrets: Vec<String> = if error.use_stderr() { secrets.collect() } else { Vec::new() };
    let code = ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(USAGE));
    if secrets.is_empty() {
        // A reader that has gone is no error.
        let _ = error.print();
        return code;
    }
    let text = secrets.iter().fold(error.render().to_string(), |text, secret| text.replace(secret, config::NOT_SHOWN));
    print_error(format_args!("{}\nA token is never an argument: {}.", text.trim_end(), token::NO_ARGUMENT));
    code
}

fn completions(arguments: &CompletionsArguments) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut command_line(), "vestibule", &mut script);
    print(&script);
    ExitCode::SUCCESS
}

/// Loads and validates the configuration. All errors are reported at once.
fn policy(
    arguments: &ConfigArguments,
    adjust: impl FnOnce(&mut Loaded) -> Vec<Finding>,
) -> Result<LoadedPolicy, Report> {
    inspected_policy(arguments, adjust, |_, _| Vec::new())
}

/// Loads and validates the configuration like [`policy()`]. If it is valid, `inspect` sees both, and can add further errors
/// and warnings. Key files are parsed here, since the policy does not know what keys are.
fn inspected_policy(
    arguments: &ConfigArguments,
    adjust: impl FnOnce(&mut Loaded) -> Vec<Finding>,
    inspect: impl FnOnce(&Loaded, &mut Policy) -> Vec<Finding>,
) -> Result<LoadedPolicy, Report> {
    let mut loaded = config::load(&arguments.flags(), &Environment::process())?;
    let mut findings = adjust(&mut loaded);
    let name = format!("{} ({})", loaded.source, loaded.digest);
    let (digest, file) = (loaded.digest.clone(), loaded.file.clone());
    let mut validated = policy::validate(&loaded.config).map_err(|found| findings.extend(found));
    if let Ok(policy) = &mut validated {
        findings.extend(auth::check_key_files(policy));
        findings.extend(inspect(&loaded, policy));
        loaded.locate(&mut policy.warnings);
    }
    let policy = loaded.conclude(validated, findings)?;
    Ok(LoadedPolicy { policy, name, digest, file })
}

fn fail(message: &dyn std::fmt::Display, code: u8) -> ExitCode {
    print_error(message);
    ExitCode::from(code)
}
