//! What fuzz targets share: the reading of a fuzzer's bytes, and the test that runs a target's corpus. Compiled for tests
//! and fuzzers alone. The targets are beside the code that they test, in files named `fuzz`; `fuzz/` starts them.

mod reader;

pub(crate) use reader::{READERS, Tree, lower};

/// Reads choices from a fuzzer's bytes. Past their end every choice is the first one.
pub(crate) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// Begins at the first byte.
    pub(crate) const fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    /// Takes one byte.
    pub(crate) fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// Takes one byte and returns a number below `bound`, which must not be zero.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::from(self.byte()) % bound
    }

    /// Takes one byte and returns the option that it chooses.
    pub(crate) fn choose<'o, T>(&mut self, options: &'o [T]) -> &'o T {
        &options[self.below(options.len())]
    }

    /// Takes a length of one byte, and as many bytes.
    pub(crate) fn part(&mut self) -> &'a [u8] {
        let length = usize::from(self.byte()).min(self.0.len());
        let (part, rest) = self.0.split_at(length);
        self.0 = rest;
        part
    }

    /// Returns whether every byte is taken.
    pub(crate) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes all bytes that are left.
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }
}

/// Runs a target with every file of its corpus.
#[cfg(test)]
pub(crate) fn run_corpus(name: &str, target: fn(&[u8])) {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut count = 0;
    for entry in entries {
        let path = entry.expect("an entry").path();
        let data = std::fs::read(&path).expect("a file");
        // Shown only if the target fails, and then it says for which file.
        println!("{}", path.display());
        target(&data);
        count += 1;
    }
    assert!(count > 0, "{} is empty", folder.display());
}
