//! The pages that benchmarks write their figures into, and the words for where these were measured.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Returns the path of a page.
pub(crate) fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name)
}

/// Replaces what is between `<!-- NAME -->` and `<!-- end of NAME -->` in a page.
pub(crate) fn replace(page: &str, name: &str, text: &str) {
    let path = path(page);
    let old = std::fs::read_to_string(&path).expect("the page");
    let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- end of {name} -->"));
    let (before, rest) = old.split_once(&begin).expect("the first marker");
    let (_, after) = rest.split_once(&end).expect("the second marker");
    std::fs::write(&path, format!("{before}{begin}\n{text}\n{end}{after}")).expect("written");
    println!("written: {}", path.display());
}

/// Returns what is special about a run, as part of a sentence: rough figures, or those of another profile.
pub(crate) fn form(is_quick: bool) -> String {
    let program = crate::middle::vestibule::program();
    let is_release = program.components().any(|part| part.as_os_str() == "release");
    let quick = if is_quick { " in the quick form, whose figures are rough," } else { "" };
    let profile = if is_release { "" } else { " with another profile than that of a release," };
    format!("{quick}{profile}")
}

/// Returns the date and the machine, as part of a sentence.
pub(crate) fn machine() -> String {
    let information = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = information.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let model = model.map_or("a processor that the system does not name", |(_, model)| model.trim());
    let cores = std::fs::read_dir("/sys/devices/system/cpu").map_or(1, |entries| {
        let is_core = |name: &str| name.strip_prefix("cpu").is_some_and(|rest| rest.parse::<u16>().is_ok());
        entries.flatten().filter(|entry| entry.file_name().to_str().is_some_and(is_core)).count()
    });
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let kernel = kernel.split(['-', '\n']).next().unwrap_or_default();
    format!("on {}, {cores} cores of {model}, Linux {kernel}", date())
}

fn date() -> String {
    let output = Command::new("date").arg("+%Y-%m-%d").output();
    output.map_or_else(|_| String::new(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Returns the middle one of several values, or what is between the two middle ones.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        count => f64::midpoint(sorted[(count - 1) / 2], sorted[count / 2]),
    }
}
