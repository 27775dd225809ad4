//! The end of the validity of a listener's certificate and its chain: exported as a metric, and warned of before it and
//! after it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use tokio_rustls::rustls::client::verify_server_cert_signed_by_trust_anchor;
use tokio_rustls::rustls::pki_types::{CertificateDer, UnixTime};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::{CertificateError, Error, RootCertStore};

use crate::auth::unix_seconds;
use crate::policy::CERTIFICATE_SOON;

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
/// The time before the end from which it is warned of, in seconds.
const SOON: u64 = CERTIFICATE_SOON.as_secs();
/// The interval at which a warning is repeated.
const REPEAT: u64 = DAY;

/// The end of a chain's validity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CertificateExpiry {
    /// A certificate of the chain expires, the first of all to do so.
    At {
        /// The Unix time until which it is valid, in seconds.
        not_after: u64,
        /// The position in the file. The listener's own certificate is at 0.
        position: usize,
    },
    /// The end of the listener's own certificate cannot be read, or is before the begin.
    Unreadable,
}

impl CertificateExpiry {
    /// Reads it out of the certificates of a file. A further one that cannot be read does not count: it may be one that
    /// clients read, or do not need.
    pub(super) fn of(chain: &[CertificateDer<'_>]) -> Self {
        let mut ends = chain.iter().map(not_after).enumerate();
        let Some((_, Some(first))) = ends.next() else { return Self::Unreadable };
        let further = ends.filter_map(|(position, end)| Some((end?, position)));
        let (not_after, position) = further.fold((first, 0), Ord::min);
        Self::At { not_after, position }
    }

    /// Returns the value of the metric, a Unix time in seconds. It is 0 where it cannot be read, since clients refuse such
    /// a certificate like one that has expired.
    fn timestamp(self) -> i64 {
        match self {
            Self::At { not_after, .. } => i64::try_from(not_after).unwrap_or(i64::MAX),
            Self::Unreadable => 0,
        }
    }

    /// Returns whether clients refuse the certificate at this Unix time.
    fn is_past(self, now: u64) -> bool {
        match self {
            Self::At { not_after, .. } => now > not_after,
            Self::Unreadable => true,
        }
    }

    /// Returns the warning about the chain in this file, if it has expired at this Unix time or does so soon.
    pub(super) fn warning(self, file: &Path, now: u64) -> Option<String> {
        const REMEDY: &str = "replace the file by a renewed one, which is loaded without a restart";
        let file = file.display();
        let Self::At { not_after, position } = self else {
            return Some(format!(
                "the validity of the certificate in {file} cannot be read, or ends before it begins; clients refuse it: {REMEDY}"
            ));
        };
        let (which, refused) = match position {
            0 => (format!("the certificate in {file}"), "it"),
            _ => (format!("certificate {} of the chain in {file}", position + 1), "the chain"),
        };
        if now > not_after {
            let ago = span(now - not_after);
            return Some(format!("{which} expired {ago} ago; clients refuse {refused}: {REMEDY}"));
        }
        let left = not_after - now;
        (left <= SOON).then(|| format!("{which} expires in {}: {REMEDY}", span(left)))
    }
}

/// Returns the Unix time until which a certificate is valid, in seconds, if that can be read.
fn not_after(certificate: &CertificateDer<'_>) -> Option<u64> {
    // The TLS library has no function that returns it, but the verification at a time after every certificate's end looks
    // at the validity before anything else, of an authority too, and says in its error when that ended.
    let never = UnixTime::since_unix_epoch(Duration::from_secs(u64::MAX));
    let verified = ParsedCertificate::try_from(certificate).and_then(|parsed| {
        verify_server_cert_signed_by_trust_anchor(&parsed, &RootCertStore::empty(), &[], never, &[])
    });
    match verified {
        Err(Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. })) => Some(not_after.as_secs()),
        _ => None,
    }
}

/// Returns a number of seconds as people write it.
fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / MINUTE),
        7_200..172_800 => format!("{} h", seconds / HOUR),
        _ => format!("{} days", seconds / DAY),
    }
}

/// Watches the expiry of the chain that handshakes use now.
#[derive(Debug)]
pub(super) struct ExpiryWatch {
    file: PathBuf,
    /// The metric, for each listener that uses the certificate.
    gauges: Vec<Gauge>,
    expiry: CertificateExpiry,
    /// The Unix time of the last warning, and whether the chain had expired then.
    warned: Option<(u64, bool)>,
}

impl ExpiryWatch {
    /// Creates it for the chain in this file. It warns at once if there is reason to.
    pub(super) fn start(file: &Path, gauges: Vec<Gauge>, expiry: CertificateExpiry) -> Self {
        let mut watch = Self { file: file.to_owned(), gauges, expiry, warned: None };
        watch.replace(expiry);
        watch
    }

    /// Takes the expiry of a chain that was loaded in place of the former one.
    pub(super) fn replace(&mut self, expiry: CertificateExpiry) {
        (self.expiry, self.warned) = (expiry, None);
        for gauge in &self.gauges {
            gauge.set(expiry.timestamp());
        }
        self.warn_if_due();
    }

    /// Logs the warning when it begins to apply, when the chain expires, and once a day.
    pub(super) fn warn_if_due(&mut self) {
        if let Some(warning) = self.due_warning(unix_seconds()) {
            tracing::warn!("{warning}");
        }
    }

    fn due_warning(&mut self, now: u64) -> Option<String> {
        let warning = self.expiry.warning(&self.file, now)?;
        let is_past = self.expiry.is_past(now);
        // The difference counts either way, since the clock may be set back.
        if self.warned.is_some_and(|(at, was_past)| was_past == is_past && now.abs_diff(at) < REPEAT) {
            return None;
        }
        self.warned = Some((now, is_past));
        Some(warning)
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};

    use super::*;

    /// 2026-01-01.
    const NEW_YEAR: u64 = 1_767_225_600;

    /// The expiry of the listener's own certificate.
    fn at(not_after: u64) -> CertificateExpiry {
        CertificateExpiry::At { not_after, position: 0 }
    }

    fn expiry_of(begin: (i32, u8, u8), end: (i32, u8, u8)) -> CertificateExpiry {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        params.not_before = date_time_ymd(begin.0, begin.1, begin.2);
        params.not_after = date_time_ymd(end.0, end.1, end.2);
        let certificate = params.self_signed(&KeyPair::generate().expect("a key")).expect("signed");
        CertificateExpiry::of(&[certificate.der().clone()])
    }

    #[test]
    fn the_end_of_the_validity_is_read_whatever_else_the_certificate_has() {
        assert_eq!(expiry_of((2020, 1, 1), (2026, 1, 1)), at(NEW_YEAR));
        // Dates after 2049 are encoded in another way.
        assert_eq!(expiry_of((2020, 1, 1), (2050, 1, 1)), at(2_524_608_000));
        assert_eq!(expiry_of((2020, 1, 1), (9999, 12, 31)), at(253_402_214_400));
        assert_eq!(expiry_of((3000, 1, 1), (3001, 1, 1)), at(32_535_216_000), "not valid yet");
        assert_eq!(expiry_of((2026, 1, 1), (2025, 1, 1)), CertificateExpiry::Unreadable);
        assert_eq!(CertificateExpiry::of(&[CertificateDer::from(vec![0x30, 0])]), CertificateExpiry::Unreadable);
        // What a server's certificate should not have.
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        params.not_after = date_time_ymd(2026, 1, 1);
        let certificate = params.self_signed(&KeyPair::generate().expect("a key")).expect("signed");
        assert_eq!(CertificateExpiry::of(&[certificate.der().clone()]), at(NEW_YEAR));
    }

    #[test]
    fn of_a_chain_the_certificate_that_ends_first_counts() {
        let until = |year| {
            let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
            params.not_after = date_time_ymd(year, 1, 1);
            params
        };
        let authority = |year| {
            let mut params = until(year);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            (params, KeyPair::generate().expect("a key"))
        };
        let chain = |own: i32, intermediate: i32, root: i32| {
            let (params, key) = authority(root);
            let root = CertifiedIssuer::self_signed(params, key).expect("signed");
            let (params, key) = authority(intermediate);
            let intermediate = CertifiedIssuer::signed_by(params, key, &root).expect("signed");
            let key = KeyPair::generate().expect("a key");
            let own = until(own).signed_by(&key, &intermediate).expect("signed");
            [own.der().clone(), intermediate.der().clone(), root.der().clone()]
        };
        let expected = |position| CertificateExpiry::At { not_after: NEW_YEAR, position };
        assert_eq!(CertificateExpiry::of(&chain(2026, 2027, 2028)), expected(0));
        assert_eq!(CertificateExpiry::of(&chain(2027, 2026, 2028)), expected(1));
        assert_eq!(CertificateExpiry::of(&chain(2027, 2028, 2026)), expected(2));
        assert_eq!(CertificateExpiry::of(&chain(2026, 2026, 2026)), expected(0), "the listener's own first");
        assert_eq!(CertificateExpiry::of(&chain(2028, 2026, 2026)), expected(1));
        let [own, intermediate, _] = chain(2026, 2027, 2028);
        let unreadable = || CertificateDer::from(vec![0x30, 0]);
        assert_eq!(CertificateExpiry::of(&[own, unreadable()]), expected(0));
        assert_eq!(CertificateExpiry::of(&[unreadable(), intermediate]), CertificateExpiry::Unreadable);
        assert_eq!(CertificateExpiry::of(&[]), CertificateExpiry::Unreadable);
    }

    #[test]
    fn the_warning_says_when_and_what_to_do() {
        let warning = |now| at(NEW_YEAR).warning(Path::new("/tls.crt"), now);
        let remedy = "replace the file by a renewed one, which is loaded without a restart";
        for (now, expected) in [
            (NEW_YEAR - SOON, "expires in 7 days"),
            (NEW_YEAR - 3 * DAY - HOUR, "expires in 3 days"),
            (NEW_YEAR - DAY, "expires in 24 h"),
            (NEW_YEAR - HOUR, "expires in 60 min"),
            (NEW_YEAR, "expires in 0 s"),
            (NEW_YEAR + 1, "expired 1 s ago; clients refuse it"),
            (NEW_YEAR + 665 * DAY, "expired 665 days ago; clients refuse it"),
        ] {
            assert_eq!(warning(now).expect(expected), format!("the certificate in /tls.crt {expected}: {remedy}"));
        }
        assert_eq!(warning(NEW_YEAR - SOON - 1), None);
        let intermediate = CertificateExpiry::At { not_after: NEW_YEAR, position: 1 };
        for (now, expected) in
            [(NEW_YEAR - HOUR, "expires in 60 min"), (NEW_YEAR + HOUR, "expired 60 min ago; clients refuse the chain")]
        {
            let expected = format!("certificate 2 of the chain in /tls.crt {expected}: {remedy}");
            assert_eq!(intermediate.warning(Path::new("/tls.crt"), now), Some(expected));
        }
        let unreadable = CertificateExpiry::Unreadable.warning(Path::new("/tls.crt"), 0).expect("a warning");
        assert!(unreadable.starts_with("the validity of the certificate in /tls.crt cannot be read"), "{unreadable}");
    }

    #[test]
    fn it_is_repeated_once_a_day_and_when_the_certificate_expires() {
        let gauge = Gauge::default();
        let end = unix_seconds() + 100 * DAY;
        let mut watch = ExpiryWatch::start(Path::new("/tls.crt"), vec![gauge.clone()], at(end));
        assert_eq!(gauge.get(), end.cast_signed());
        let begin = end - SOON;
        for (now, is_due) in [
            (begin - 1, false),
            (begin, true),
            (begin + 5, false),
            (begin + DAY - 1, false),
            (begin + DAY, true),
            (end - 2, true),
            (end, false),
            (end + 1, true),
            (end + DAY, false),
            (end + 1 + DAY, true),
            // The clock is set back.
            (end + 1, true),
        ] {
            assert_eq!(
                watch.due_warning(now).is_some(),
                is_due,
                "{} s after the end",
                now.cast_signed() - end.cast_signed()
            );
        }
        watch.replace(at(end + 100 * DAY));
        assert_eq!((gauge.get(), watch.due_warning(end)), ((end + 100 * DAY).cast_signed(), None));
        watch.replace(at(end));
        assert!(watch.due_warning(end).is_some(), "another certificate");
        watch.replace(CertificateExpiry::Unreadable);
        assert_eq!(gauge.get(), 0);
    }
}
