//! `vestibule schema`: prints the JSON Schema of the configuration file for editors, and the reference of its keys.

use std::process::ExitCode;

use super::{SchemaArguments, print, print_line};
use crate::config;

pub(super) fn schema(arguments: &SchemaArguments) -> ExitCode {
    if arguments.markdown {
        print(config::reference::markdown().as_bytes());
    } else {
        print_line(format_args!("{:#}", config::schema()));
    }
    ExitCode::SUCCESS
}
