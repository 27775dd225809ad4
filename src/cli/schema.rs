//! `vestibule schema`: the shape of the configuration file for editors, and the reference of its keys.

use std::process::ExitCode;

use super::{SchemaArguments, print};
use crate::config;

pub(super) fn schema(arguments: &SchemaArguments) -> ExitCode {
    if arguments.markdown {
        return print(config::reference::markdown().as_bytes());
    }
    print(format!("{:#}\n", config::schema()).as_bytes())
}
