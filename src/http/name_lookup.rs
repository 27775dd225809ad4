//! Looks up the name of an upstream, with few lookups under way at once.
//!
//! A lookup blocks a thread, and nothing can end it: at a name server that does not answer it lasts as long as the
//! resolver tries, 10 s and more, also when the request that needed it has long been answered. With one lookup for each
//! request they would take all threads that also read and write files, and reloads and revocations would wait for them.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// The time for which further requests join a lookup. A later one begins another, because a lost packet delays a lookup
/// by seconds.
const JOINED_FOR: Duration = Duration::from_secs(1);
/// The maximum number of lookups of one upstream that are under way at once.
const MAX_LOOKUPS: usize = 16;

/// The addresses of a name, or the kind and the text of the error.
type Found = Result<Arc<[SocketAddr]>, (io::ErrorKind, Arc<str>)>;

/// Looks up one name.
#[derive(Default)]
pub(super) struct NameLookup(Arc<Mutex<Underway>>);

#[derive(Default)]
struct Underway {
    next_id: u64,
    /// The lookups under way, in the order in which they began.
    lookups: Vec<Lookup>,
}

/// A lookup that has not ended.
struct Lookup {
    id: u64,
    began: Instant,
    found: watch::Receiver<Option<Found>>,
}

fn lock(underway: &Mutex<Underway>) -> MutexGuard<'_, Underway> {
    underway.lock().unwrap_or_else(PoisonError::into_inner)
}

impl NameLookup {
    /// Returns the addresses of a host, which is always the same one. It may be an address itself.
    ///
    /// # Errors
    /// Returns the resolver's error.
    pub(super) async fn addresses(&self, host: &str, port: u16) -> io::Result<Arc<[SocketAddr]>> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(Arc::new([SocketAddr::new(ip, port)]));
        }
        let host = host.to_owned();
        self.join_or_begin(|| async move { Ok(tokio::net::lookup_host((host, port)).await?.collect()) }).await
    }

    /// Waits for a lookup that is under way, or begins one. It goes on when the caller gives up.
    async fn join_or_begin<F>(&self, begin: impl FnOnce() -> F) -> io::Result<Arc<[SocketAddr]>>
    where
        F: Future<Output = io::Result<Arc<[SocketAddr]>>> + Send + 'static,
    {
        let (mut found, task) = {
            let mut underway = lock(&self.0);
            let is_full = underway.lookups.len() >= MAX_LOOKUPS;
            match underway.lookups.last() {
                Some(newest) if is_full || newest.began.elapsed() < JOINED_FOR => (newest.found.clone(), None),
                _ => {
                    let (found, task) = self.begin(&mut underway, begin());
                    (found, Some(task))
                }
            }
        };
        // Without the lock: a runtime that is shutting down drops the task here, and its entry takes the lock.
        if let Some(task) = task {
            tokio::spawn(task);
        }
        let found = found.wait_for(Option::is_some).await.ok().and_then(|found| found.clone());
        match found {
            Some(Ok(addresses)) => Ok(addresses),
            Some(Err((kind, text))) => Err(io::Error::new(kind, &*text)),
            None => Err(io::Error::other("the lookup was ended")),
        }
    }

    /// Adds a lookup to those under way. Returns the receiver of its result, and its task.
    fn begin(
        &self,
        underway: &mut Underway,
        lookup: impl Future<Output = io::Result<Arc<[SocketAddr]>>> + Send + 'static,
    ) -> (watch::Receiver<Option<Found>>, impl Future<Output = ()> + Send + 'static) {
        let (report, found) = watch::channel(None);
        let id = underway.next_id;
        underway.next_id += 1;
        underway.lookups.push(Lookup { id, began: Instant::now(), found: found.clone() });
        let entry = Entry { underway: Arc::clone(&self.0), id };
        let task = async move {
            let result = lookup.await.map_err(|error| (error.kind(), error.to_string().into()));
            // A request that comes now begins another lookup: nothing is remembered.
            drop(entry);
            report.send_replace(Some(result));
        };
        (found, task)
    }
}

/// The entry of a lookup among those under way. It is removed when dropped, also where the lookup panics: one that stayed
/// would be joined, or counted, for ever.
struct Entry {
    underway: Arc<Mutex<Underway>>,
    id: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        lock(&self.underway).lookups.retain(|lookup| lookup.id != self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Semaphore;
    use tokio::time::sleep;

    use super::*;

    const ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 80);

    /// A name server that answers as often as it may.
    struct Server {
        lookup: NameLookup,
        asked: Arc<AtomicUsize>,
        answers: Arc<Semaphore>,
    }

    impl Server {
        fn start() -> Self {
            Self { lookup: NameLookup::default(), asked: Arc::default(), answers: Arc::new(Semaphore::new(0)) }
        }

        async fn addresses(&self) -> io::Result<Arc<[SocketAddr]>> {
            let (asked, answers) = (Arc::clone(&self.asked), Arc::clone(&self.answers));
            let begin = || async move {
                asked.fetch_add(1, Ordering::Relaxed);
                answers.acquire().await.expect("open").forget();
                Ok([ADDRESS].into())
            };
            self.lookup.join_or_begin(begin).await
        }

        /// Asks without waiting for an answer, as a request does whose `connect_timeout` passes.
        async fn ask_in_vain(&self) {
            let answer = tokio::time::timeout(Duration::from_millis(1), self.addresses()).await;
            assert!(answer.is_err(), "{answer:?}");
        }

        fn asked(&self) -> usize {
            self.asked.load(Ordering::Relaxed)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn requests_of_one_second_share_a_lookup_that_is_under_way_and_none_that_has_ended() {
        let server = Server::start();
        server.ask_in_vain().await;
        let (first, second, ()) =
            tokio::join!(server.addresses(), server.addresses(), async { server.answers.add_permits(1) });
        assert_eq!((&*first.expect("found"), &*second.expect("found")), (&[ADDRESS][..], &[ADDRESS][..]));
        assert_eq!(server.asked(), 1);
        server.answers.add_permits(1);
        assert_eq!(&*server.addresses().await.expect("found"), [ADDRESS]);
        assert_eq!(server.asked(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_server_that_does_not_answer_is_asked_again_each_second_up_to_a_limit() {
        let server = Server::start();
        for second in 1..=2 * MAX_LOOKUPS {
            for _ in 0..3 {
                server.ask_in_vain().await;
            }
            assert_eq!(server.asked(), second.min(MAX_LOOKUPS));
            sleep(JOINED_FOR).await;
        }
        // One of them ends, and the next request begins another.
        server.answers.add_permits(1);
        sleep(Duration::from_millis(1)).await;
        server.ask_in_vain().await;
        assert_eq!(server.asked(), MAX_LOOKUPS + 1);
    }

    #[tokio::test(start_paused = true)]
    async fn lookups_that_panic_do_not_remain_under_way() {
        let server = Server::start();
        for _ in 0..=MAX_LOOKUPS {
            let ended = server.lookup.join_or_begin(|| async { panic!("a resolver that panics") }).await;
            assert_eq!(ended.expect_err("no result").to_string(), "the lookup was ended");
        }
        server.answers.add_permits(1);
        assert_eq!(&*server.addresses().await.expect("found"), [ADDRESS]);
    }

    #[tokio::test]
    async fn an_address_needs_no_lookup() {
        let lookup = NameLookup::default();
        for (host, address) in [("127.0.0.1", "127.0.0.1:80"), ("::1", "[::1]:80")] {
            let found = lookup.addresses(host, 80).await.expect("found");
            assert_eq!(*found, [address.parse().expect("an address")]);
        }
    }
}
