//! Follows the structure of one message as the most lenient reader would, and finds the members that the rules name.

use super::{Rules, Wanted, paired, push_without_case};

/// The state of the lexer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lex {
    Between,
    /// In a string that ends with this quote.
    Quoted(char, Escape),
    /// In a word without quotes: a number, `true`, `NaN`, a name as JSON5 allows it.
    Bare,
    Slash,
    LineComment,
    BlockComment {
        star: bool,
    },
    /// In the rest of a line that no reader takes for a message.
    Lost,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Escape {
    None,
    Backslash,
    Hex { left: u8, value: u32 },
}

/// An object or an array on the path to a member.
#[derive(Clone, Debug)]
struct Frame {
    is_array: bool,
    index: u64,
    /// The keys that may still be found inside it.
    keys: u64,
    /// In an object: the keys that the name just read leads to; `None` before a name.
    named: Option<u64>,
}

/// Whether a character has a second reading, which another scanner must follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ambiguity {
    None,
    /// Some readers end a comment here, others do not.
    CommentMayEnd,
}

/// The characters that end a line for readers that take each line as a message. Each set contains the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum LineEnds {
    /// A line feed alone: Go, Ruby, this proxy.
    Feed,
    /// A carriage return too: Java, .NET.
    Return,
    /// U+2028 and U+2029 too: `readline` of Node.
    Separator,
    /// Vertical tab, form feed and U+0085 too: `\R` of regular expressions.
    Unicode,
    /// The ASCII separators U+001C to U+001E too: `splitlines` of Python.
    Python,
}

impl LineEnds {
    pub(super) const ALL: [Self; 5] = [Self::Feed, Self::Return, Self::Separator, Self::Unicode, Self::Python];

    fn contains(self, c: char) -> bool {
        let first = match c {
            '\n' => Self::Feed,
            '\r' => Self::Return,
            '\u{2028}' | '\u{2029}' => Self::Separator,
            '\u{b}' | '\u{c}' | '\u{85}' => Self::Unicode,
            '\u{1c}'..='\u{1e}' => Self::Python,
            _ => return false,
        };
        self >= first
    }
}

/// A scanner for one reading of a message.
#[derive(Clone, Debug)]
pub(super) struct Scanner {
    /// The line ends, where each line is a message.
    lines: Option<LineEnds>,
    lex: Lex,
    frames: Vec<Frame>,
    /// The number of open objects and arrays below the deepest that the rules name.
    below: u64,
    /// The name or value being read, case-folded; characters beyond `longest` are not kept.
    text: String,
    /// The number of characters of the name or value.
    length: usize,
    longest: usize,
    /// Whether the name or value has escapes that readers take differently, so that it may be any text.
    is_any: bool,
    /// The first half of an escaped surrogate pair.
    high: Option<u32>,
    /// The keys that had a value that fits, a bit for each.
    satisfied: u64,
    /// The keys that had a value that does not fit, or no value.
    missed: u64,
    /// The rules that fit, a bit for each.
    fits: u32,
    /// Whether the first value has ended.
    has_ended: bool,
    /// Whether the message has something that the proxy refuses, such as a comment.
    is_odd: bool,
    /// Whether no reader finds a message in the rest of the bytes.
    is_dead: bool,
}

impl Scanner {
    pub(super) fn new(rules: &Rules, lines: Option<LineEnds>) -> Self {
        Self {
            lines,
            lex: Lex::Between,
            frames: Vec::new(),
            below: 0,
            text: String::new(),
            length: 0,
            longest: rules.longest,
            is_any: false,
            high: None,
            satisfied: rules.given,
            missed: 0,
            fits: 0,
            has_ended: false,
            is_odd: false,
            is_dead: false,
        }
    }

    pub(super) const fn is_dead(&self) -> bool {
        self.is_dead
    }

    pub(super) const fn lines(&self) -> Option<LineEnds> {
        self.lines
    }

    pub(super) const fn fits(&self) -> u32 {
        self.fits
    }

    /// Returns whether some rule may still fit a message in which no member is doubled.
    pub(super) fn may_fit_unambiguously(&self, rules: &Rules) -> bool {
        let open = self.lines.is_some()
            || (!self.has_ended && rules.rules.iter().any(|rule| rule.keys & !rules.given & self.missed == 0));
        open && !self.is_odd && !self.is_dead
    }

    /// Returns how many of these bytes can be skipped; `None` unless the lexer is in a string that no rule compares.
    pub(super) fn skips(&self, bytes: &[u8]) -> Option<usize> {
        let Lex::Quoted(quote, Escape::None) = self.lex else { return None };
        if self.lines.is_some() || (self.is_compared() && self.length <= self.longest) {
            return None;
        }
        let quote = u8::try_from(quote).ok()?;
        Some(bytes.iter().position(|byte| *byte == quote || *byte == b'\\').unwrap_or(bytes.len()))
    }

    /// Returns a copy for the reading in which the current comment has ended.
    pub(super) fn with_comment_ended(&self) -> Self {
        Self { lex: Lex::Between, ..self.clone() }
    }

    pub(super) fn push(&mut self, rules: &Rules, c: char) -> Ambiguity {
        // A zero byte of UTF-16 or UTF-32 that is read as UTF-8; readers that accept zero bytes skip them.
        if c == '\0' {
            return Ambiguity::None;
        }
        if self.lines.is_some_and(|ends| ends.contains(c)) {
            self.end_line(rules);
            return Ambiguity::None;
        }
        match self.lex {
            Lex::Quoted(quote, escape) => self.in_quotes(rules, quote, escape, c),
            Lex::Bare if !ends_word(c) => self.keep(c),
            Lex::Bare => {
                self.lex = Lex::Between;
                self.end_scalar(rules, false);
                if self.lex == Lex::Between && !self.is_dead {
                    self.between(rules, c);
                }
            }
            Lex::Between => self.between(rules, c),
            Lex::Slash => match c {
                '/' => self.lex = Lex::LineComment,
                '*' => self.lex = Lex::BlockComment { star: false },
                _ => {
                    self.lex = Lex::Between;
                    self.between(rules, c);
                }
            },
            Lex::LineComment if c == '\n' => self.lex = Lex::Between,
            Lex::LineComment if matches!(c, '\r' | '\u{85}' | '\u{2028}' | '\u{2029}') => {
                return Ambiguity::CommentMayEnd;
            }
            Lex::BlockComment { star: true } if c == '/' => self.lex = Lex::Between,
            Lex::BlockComment { .. } => self.lex = Lex::BlockComment { star: c == '*' },
            Lex::LineComment | Lex::Lost => {}
        }
        Ambiguity::None
    }

    /// Ends the message.
    pub(super) fn end(&mut self, rules: &Rules) {
        if self.lex == Lex::Bare {
            self.end_scalar(rules, false);
            self.lex = Lex::Between;
        }
    }

    /// Stops where no reader finds a message: until the end of the line, or of the whole message where lines are not
    /// split.
    fn give_up(&mut self) {
        if self.lines.is_some() {
            self.lex = Lex::Lost;
        } else {
            self.is_dead = true;
        }
    }

    /// Returns whether the lexer is outside every object and array, before the end of the first value.
    fn is_first(&self) -> bool {
        self.frames.is_empty() && self.below == 0 && !self.has_ended
    }

    fn end_line(&mut self, rules: &Rules) {
        self.end(rules);
        self.is_odd |= self.lex != Lex::Between || !self.frames.is_empty();
        self.lex = Lex::Between;
        self.frames.clear();
        self.below = 0;
        self.satisfied = rules.given;
        self.missed = 0;
        self.has_ended = false;
    }

    fn between(&mut self, rules: &Rules, c: char) {
        if c.is_whitespace() || c.is_control() || c == '\u{feff}' {
            return;
        }
        if self.is_first() {
            // A reader that takes several values may skip a first one that is not an object.
            self.is_odd |= !(c == '{' || (c == '[' && rules.arrays) || matches!(c, '/' | '#'));
            if matches!(c, ',' | ';' | ':' | '=' | '>' | ']' | '}') {
                return self.give_up();
            }
        }
        match c {
            '{' | '[' => self.open(rules, c == '['),
            '}' | ']' => self.close(),
            ',' | ';' => {
                if self.below == 0
                    && let Some(frame) = self.frames.last_mut()
                {
                    frame.named = None;
                    frame.index += u64::from(frame.is_array);
                }
            }
            // The colon, and what some readers accept instead of it.
            ':' | '=' | '>' => {}
            '"' | '\'' => {
                self.begin_scalar();
                self.lex = Lex::Quoted(c, Escape::None);
            }
            '/' | '#' => {
                self.is_odd = true;
                self.lex = if c == '/' { Lex::Slash } else { Lex::LineComment };
            }
            _ => {
                self.begin_scalar();
                self.lex = Lex::Bare;
                self.keep(c);
            }
        }
    }

    fn in_quotes(&mut self, rules: &Rules, quote: char, escape: Escape, c: char) {
        let next = match escape {
            Escape::None if c == quote => {
                self.lex = Lex::Between;
                return self.end_scalar(rules, true);
            }
            Escape::None if c == '\\' => Escape::Backslash,
            Escape::None => {
                self.keep(c);
                Escape::None
            }
            Escape::Backslash => match c {
                'u' => Escape::Hex { left: 4, value: 0 },
                'b' | 'f' | 'n' | 'r' | 't' | '\n' | '\r' | '\u{2028}' | '\u{2029}' => Escape::None,
                '"' | '\\' | '/' | '\'' => {
                    self.keep(c);
                    Escape::None
                }
                _ => {
                    self.is_any = true;
                    Escape::None
                }
            },
            Escape::Hex { left, value } => match c.to_digit(16) {
                Some(digit) if left == 1 => {
                    self.keep_unit(value << 4 | digit);
                    Escape::None
                }
                Some(digit) => Escape::Hex { left: left - 1, value: value << 4 | digit },
                None => {
                    self.is_any = true;
                    self.lex = Lex::Quoted(quote, Escape::None);
                    return self.in_quotes(rules, quote, Escape::None, c);
                }
            },
        };
        self.lex = Lex::Quoted(quote, next);
    }

    /// Returns whether a rule may compare the name or value being read.
    fn is_compared(&self) -> bool {
        self.below == 0 && !self.frames.is_empty()
    }

    fn begin_scalar(&mut self) {
        self.text.clear();
        self.length = 0;
        self.is_any = false;
        self.high = None;
    }

    fn keep(&mut self, c: char) {
        if self.is_compared() || self.is_first() {
            self.high = None;
            let before = self.text.len();
            if self.length <= self.longest {
                push_without_case(&mut self.text, c);
                self.length += usize::from(self.text.len() > before);
            }
        }
    }

    /// Keeps an escaped UTF-16 unit; an unpaired surrogate is left out.
    fn keep_unit(&mut self, unit: u32) {
        match (unit, self.high.take()) {
            (0xd800..=0xdbff, _) => self.high = Some(unit),
            (0xdc00..=0xdfff, Some(high)) => {
                if let Some(c) = paired(high, unit) {
                    self.keep(c);
                }
            }
            _ => {
                if let Some(c) = char::from_u32(unit) {
                    self.keep(c);
                }
            }
        }
    }

    fn end_scalar(&mut self, rules: &Rules, is_quoted: bool) {
        if self.is_first() {
            // Every reader stops after a word that is not a value.
            self.has_ended = is_quoted || self.is_literal();
            if !self.has_ended {
                self.give_up();
            }
            return;
        }
        if !self.is_compared() {
            return;
        }
        let depth = self.frames.len() - 1;
        let Some(frame) = self.frames.last_mut() else { return };
        if !frame.is_array && frame.named.is_none() {
            let is_short = self.length <= self.longest;
            let leads = bits(frame.keys)
                .filter(|at| self.is_any || (is_short && rules.keys[*at].path[depth].name == self.text))
                .fold(0, |mask, at| mask | 1 << at);
            frame.named = Some(leads);
            return;
        }
        let keys = frame.takes_value(rules, depth);
        for at in bits(keys) {
            let key = &rules.keys[at];
            let fits = key.path.len() == depth + 1 && (self.is_any || self.value_fits(&key.wanted, is_quoted));
            if fits { self.satisfied |= 1 << at } else { self.missed |= 1 << at }
        }
        self.fits |= rules.fitting(self.satisfied);
    }

    /// Returns whether the text may be a number whose digits were not all kept.
    fn is_long_number(&self) -> bool {
        self.length > self.longest && self.text.chars().all(|c| c.is_ascii_hexdigit() || "+-._x".contains(c))
    }

    /// Returns whether the word is a JSON literal or a number.
    fn is_literal(&self) -> bool {
        matches!(self.text.as_str(), "null" | "true" | "false") || self.is_long_number() || number(&self.text).is_some()
    }

    fn value_fits(&self, wanted: &Wanted, is_quoted: bool) -> bool {
        let is_short = self.length <= self.longest;
        let is_number = |wanted: f64| {
            if !is_short {
                return self.is_long_number();
            }
            number(&self.text).is_some_and(|found| same(found, wanted) || same(found.trunc(), wanted))
        };
        match wanted {
            Wanted::Present | Wanted::Null => true,
            Wanted::Text(text) => is_short && self.text == *text,
            Wanted::Number(wanted) => is_number(*wanted),
            Wanted::Bool(true) => matches!(self.text.as_str(), "true" | "yes" | "on" | "y" | "t") || is_number(1.0),
            Wanted::Bool(false) => {
                matches!(self.text.as_str(), "false" | "no" | "off" | "n" | "f" | "null")
                    || (is_quoted && self.text.is_empty())
                    || is_number(0.0)
            }
            Wanted::Container => false,
        }
    }

    fn open(&mut self, rules: &Rules, is_array: bool) {
        if self.below > 0 {
            self.below += 1;
            return;
        }
        let depth = self.frames.len();
        let (reached, mut deeper) = match self.frames.last_mut() {
            None => {
                // Readers that accept several values read one after the first as another message.
                self.satisfied = rules.given;
                self.missed = 0;
                (0, u64::MAX >> (64 - rules.keys.len().clamp(1, 64)))
            }
            Some(frame) => {
                let keys = frame.takes_value(rules, depth - 1);
                let reached = bits(keys).filter(|at| rules.keys[*at].path.len() == depth).fold(0, |m, at| m | 1 << at);
                (reached, keys & !reached)
            }
        };
        for at in bits(reached) {
            let fits = matches!(rules.keys[at].wanted, Wanted::Present | Wanted::Container | Wanted::Null);
            if fits { self.satisfied |= 1 << at } else { self.missed |= 1 << at }
        }
        self.fits |= rules.fitting(self.satisfied);
        if depth >= rules.depth {
            deeper = 0;
        }
        if deeper == 0 && depth > 0 {
            self.below = 1;
        } else {
            self.frames.push(Frame { is_array, index: 0, keys: deeper, named: None });
        }
    }

    fn close(&mut self) {
        if self.below > 0 {
            self.below -= 1;
            return;
        }
        if let Some(frame) = self.frames.pop() {
            self.missed |= frame.keys & !self.satisfied;
            self.has_ended |= self.frames.is_empty();
        }
    }
}

impl Frame {
    /// Starts a value, and returns the keys whose path leads to it.
    fn takes_value(&mut self, rules: &Rules, depth: usize) -> u64 {
        if self.is_array {
            let here = |at: &usize| rules.keys[*at].path[depth].index == Some(self.index);
            bits(self.keys).filter(here).fold(0, |mask, at| mask | 1 << at)
        } else {
            self.named.take().unwrap_or(0)
        }
    }
}

fn ends_word(c: char) -> bool {
    c.is_whitespace() || c.is_control() || matches!(c, '{' | '}' | '[' | ']' | ',' | ':' | ';' | '=' | '"' | '\'' | '/')
}

fn bits(mask: u64) -> impl Iterator<Item = usize> {
    (0..64).filter(move |at| mask >> at & 1 == 1)
}

/// Parses a number as lenient readers do.
fn number(text: &str) -> Option<f64> {
    let plain: String = text.chars().filter(|c| *c != '_').collect();
    let (sign, digits) = match plain.strip_prefix('-') {
        Some(digits) => (-1.0, digits),
        None => (1.0, plain.strip_prefix('+').unwrap_or(&plain)),
    };
    if let Some(hex) = digits.strip_prefix("0x") {
        // No rule names a number that needs more than 32 bits in hexadecimal.
        return u32::from_str_radix(hex, 16).ok().map(|value| sign * f64::from(value));
    }
    digits.parse::<f64>().ok().map(|value| sign * value)
}

fn same(a: f64, b: f64) -> bool {
    a.partial_cmp(&b) == Some(std::cmp::Ordering::Equal)
}
