//! The `vestibule` program. Exit codes: 0 done; 1 failed while running; 2 usage or configuration; 130
//! on a second signal.

use std::process::ExitCode;

fn main() -> ExitCode {
    vestibule::cli::main()
}
