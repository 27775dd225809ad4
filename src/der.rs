//! Reads DER (ITU-T X.690) element by element, as far as it takes to find a key inside a certificate or a PKCS #8 key. What
//! is found is parsed and checked by the cryptographic library.

/// The tag of an INTEGER.
pub const INTEGER: u8 = 0x02;
/// The tag of an OCTET STRING.
pub const OCTET_STRING: u8 = 0x04;
/// The tag of a SEQUENCE.
pub const SEQUENCE: u8 = 0x30;
/// The tag of the context-specific, constructed element 0.
pub const CONTEXT_0: u8 = 0xa0;

/// The maximum number of bytes in which a length is written; four are enough for 4 GiB.
const MAX_LENGTH_BYTES: usize = 4;

/// The elements of one constructed element, or of a document.
#[derive(Clone, Copy, Debug)]
pub struct Elements<'a>(&'a [u8]);

/// One element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Element<'a> {
    /// The element with its tag and length.
    pub whole: &'a [u8],
    /// The element without them.
    pub content: &'a [u8],
}

impl<'a> Element<'a> {
    /// Returns the elements inside this one.
    #[must_use]
    pub fn elements(self) -> Elements<'a> {
        Elements(self.content)
    }
}

impl<'a> Elements<'a> {
    /// Reads the elements of a document.
    #[must_use]
    pub fn of(der: &'a [u8]) -> Self {
        Self(der)
    }

    /// Takes the next element, which must have this tag.
    pub fn take(&mut self, tag: u8) -> Option<Element<'a>> {
        let (found, rest) = self.0.split_first()?;
        if *found != tag {
            return None;
        }
        let (first, rest) = rest.split_first()?;
        let (length, rest) = match usize::from(*first) {
            short @ 0..0x80 => (short, rest),
            long => {
                let count = Some(long - 0x80).filter(|count| (1..=MAX_LENGTH_BYTES).contains(count))?;
                let (bytes, rest) = rest.split_at_checked(count)?;
                (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
            }
        };
        let (content, after) = rest.split_at_checked(length)?;
        let whole = &self.0[..self.0.len() - after.len()];
        self.0 = after;
        Some(Element { whole, content })
    }

    /// Returns the elements that are left, as they are encoded.
    #[cfg(test)]
    pub fn rest(self) -> &'a [u8] {
        self.0
    }

    /// Returns whether no element is left.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_taken_in_turn() {
        let mut elements = Elements::of(&[SEQUENCE, 3, INTEGER, 1, 7, OCTET_STRING, 0x81, 1, 9]);
        let sequence = elements.take(SEQUENCE).expect("a sequence");
        assert_eq!(sequence.whole, [SEQUENCE, 3, INTEGER, 1, 7]);
        assert_eq!(sequence.elements().take(INTEGER).expect("an integer").content, [7]);
        assert!(elements.take(SEQUENCE).is_none(), "another tag");
        assert_eq!(elements.take(OCTET_STRING).expect("a string").content, [9]);
        assert!(elements.is_empty());
    }

    #[test]
    fn what_is_cut_off_is_no_element() {
        for bytes in [
            &[][..],
            &[SEQUENCE],
            &[SEQUENCE, 1],
            &[SEQUENCE, 0x80],
            &[SEQUENCE, 0x82, 0],
            &[SEQUENCE, 0x85, 0, 0, 0, 0, 0],
            &[SEQUENCE, 0x84, 0xff, 0xff, 0xff, 0xff, 0],
        ] {
            assert_eq!(Elements::of(bytes).take(SEQUENCE), None, "{bytes:?}");
        }
    }
}
