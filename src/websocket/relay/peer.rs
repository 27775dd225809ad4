//! One of the two peers of a relay: its socket, the bytes that wait to be written to it, and its signs of life.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::http::Socket;
use crate::policy::SocketLimits;
use crate::runtime::Moment;

/// The rate of the slowest supported reader, in bytes per millisecond.
const SLOWEST: u64 = 8;
/// The upper bound on the bytes that the buffers between the proxy and a peer hold.
const BETWEEN: u64 = 8 << 20;

/// The upper bound on the sent bytes that are unread in the peer's receive buffer.
const AT_THE_PEER: u64 = 256 << 10;

/// The maximum number of reads from a socket before it is closed. The connection of a peer that sends more is reset.
const LAST_READS: usize = 16;

/// The client or the upstream of a relay.
pub(super) struct Peer {
    pub(super) socket: Socket,
    /// Whether the write buffer of the socket itself may hold bytes.
    pub(super) unflushed: bool,
    /// The bytes that the peer has not taken yet; `None` where there are none, so that an idle socket holds no buffer.
    untaken: Option<Box<Untaken>>,
    pub(super) last_received: Moment,
    /// The time by which a pinged peer must have sent something. After it the peer is dead.
    pub(super) answer_due: Option<Moment>,
    /// The time by which even the slowest reader has read all that was written, and receives what is written now.
    drained_by: Moment,
    /// The earliest time of the next ping, after one that could not be sent.
    pub(super) ping_not_before: Moment,
    /// Whether the system has said that everything is sent, and nothing was written since. Asking takes three system
    /// calls, and the end of a session asks several times.
    is_sent: bool,
    /// How the peer's stream ended; `None` while it is read.
    pub(super) stream_end: Option<StreamEnd>,
    /// Whether the proxy has begun to end the stream to the peer.
    pub(super) shut: bool,
    /// Whether the socket has not accepted the end of the stream yet.
    shutting: bool,
    /// Whether the peer is not read, because the other side accepts nothing or a verdict is awaited. Meanwhile its
    /// silence is not counted.
    pub(super) is_paused: bool,
    /// Whether the peer has sent a Close.
    pub(super) close_received: bool,
    /// Whether forwarding to the peer has ended: a Close was written or queued, or can no longer be.
    pub(super) forwarding_ended: bool,
}

/// How the stream of a peer ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum StreamEnd {
    /// The peer ended it. Nothing more arrives, so that closing the socket does not reset it.
    Read,
    /// The peer is not read any more, or has reset the connection.
    GivenUp,
}

/// The bytes for a peer that wait here or in the system.
#[derive(Default)]
struct Untaken {
    /// The bytes that wait to be written, of which the first `written` are written.
    bytes: Vec<u8>,
    written: usize,
    /// The time since which a write has been pending.
    write_pending_since: Option<Moment>,
    /// The bytes that the system has not sent yet, where it was asked.
    unsent: Option<Unsent>,
}

impl Untaken {
    fn unwritten(&self) -> &[u8] {
        &self.bytes[self.written..]
    }

    fn is_empty(&self) -> bool {
        self.unwritten().is_empty() && self.write_pending_since.is_none() && self.unsent.is_none()
    }
}

/// The bytes that the system holds for a peer.
struct Unsent {
    bytes: usize,
    /// The time at which they last became fewer.
    since: Moment,
}

impl Peer {
    pub(super) fn new(socket: Socket, now: Moment) -> Self {
        Self {
            socket,
            unflushed: false,
            untaken: None,
            last_received: now,
            answer_due: None,
            drained_by: now,
            ping_not_before: now,
            is_sent: false,
            stream_end: None,
            shut: false,
            shutting: false,
            is_paused: false,
            close_received: false,
            forwarding_ended: false,
        }
    }

    /// Returns the buffer of the bytes that are written next.
    pub(super) fn out(&mut self) -> &mut Vec<u8> {
        &mut self.untaken.get_or_insert_default().bytes
    }

    fn has_waiting(&self) -> bool {
        self.untaken.as_ref().is_some_and(|untaken| !untaken.unwritten().is_empty())
    }

    /// Returns whether a write is pending.
    pub(super) fn is_write_pending(&self) -> bool {
        self.write_pending_since().is_some()
    }

    fn write_pending_since(&self) -> Option<Moment> {
        self.untaken.as_ref()?.write_pending_since
    }

    /// Records that a write is pending from now on, unless one was before.
    fn record_write_pending(&mut self) {
        self.untaken.get_or_insert_default().write_pending_since.get_or_insert_with(Moment::now);
    }

    /// Changes what the peer has not taken, if there is any, and drops the record of it when all is taken.
    fn taken(&mut self, change: impl FnOnce(&mut Untaken)) {
        if let Some(untaken) = &mut self.untaken {
            change(untaken);
            self.untaken.take_if(|untaken| untaken.is_empty());
        }
    }

    pub(super) fn next_ping(&self, limits: &SocketLimits) -> Moment {
        (self.last_received + limits.ping_interval).max(self.ping_not_before)
    }

    /// Reads into `scratch` and returns the number of bytes: 0 at the end of the stream, `None` while nothing has come.
    pub(super) fn read(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Option<usize> {
        let mut buffer = ReadBuf::new(scratch);
        match Pin::new(&mut self.socket).poll_read(cx, &mut buffer) {
            Poll::Pending => None,
            // A reset is treated as the end of the stream.
            Poll::Ready(Err(_)) => Some(self.ended(StreamEnd::GivenUp)),
            Poll::Ready(Ok(())) if buffer.filled().is_empty() => Some(self.ended(StreamEnd::Read)),
            Poll::Ready(Ok(())) => Some(self.received(buffer.filled().len())),
        }
    }

    fn ended(&mut self, end: StreamEnd) -> usize {
        self.stream_end = Some(end);
        self.received(0)
    }

    /// Returns whether the peer has ended its stream, or is not read any more.
    pub(super) fn has_ended(&self) -> bool {
        self.stream_end.is_some()
    }

    /// Records that the peer has sent bytes, or with 0 the end of its stream. Bytes after its Close are dropped and
    /// restart no timer.
    fn received(&mut self, length: usize) -> usize {
        if !self.close_received {
            self.record_received();
        }
        length
    }

    fn record_received(&mut self) {
        self.last_received = Moment::now();
        self.answer_due = None;
    }

    /// Records that the peer is read, and returns whether it was paused before. Its silence is counted from now on.
    pub(super) fn resume_reading(&mut self) -> bool {
        let again = std::mem::take(&mut self.is_paused);
        if again {
            self.record_received();
        }
        again
    }

    /// Returns whether more bytes of the peer are awaited and it is read, so that its silence counts.
    pub(super) fn is_read(&self) -> bool {
        !self.has_ended() && !self.forwarding_ended && !self.close_received && !self.is_paused
    }

    /// Records that a ping was written after everything written before.
    pub(super) fn record_ping(&mut self, limits: &SocketLimits) {
        let now = Moment::now();
        let mut drained_by = self.drained_by.max(now);
        if drained_by > now
            && let Some(held) = self.socket.held()
        {
            drained_by = drained_by.min(now + Duration::from_millis((held as u64 + AT_THE_PEER) / SLOWEST));
        }
        self.answer_due = Some(drained_by + limits.ping_timeout);
    }

    /// Returns whether the system has sent all bytes that it accepted, so that closing the socket discards nothing. It
    /// must be called before the stream is ended, when no write is pending.
    pub(super) fn is_sent_by_system(&mut self) -> bool {
        let ask = |socket: &Socket, is_at_end| if is_at_end { socket.is_sent_at_end() } else { socket.is_sent() };
        if self.shut || self.is_sent || ask(&self.socket, self.forwarding_ended) != Some(false) {
            self.taken(|untaken| untaken.unsent = None);
            self.is_sent = true;
            return true;
        }
        let bytes = self.socket.unsent();
        let unsent = &mut self.untaken.get_or_insert_default().unsent;
        if unsent.as_ref().is_none_or(|unsent| bytes < unsent.bytes) {
            *unsent = Some(Unsent { bytes, since: Moment::now() });
        }
        false
    }

    /// Returns the time since which the peer has accepted none of the bytes that wait for it here or in the system;
    /// `None` where none wait.
    pub(super) fn stalled_since(&self) -> Option<Moment> {
        let untaken = self.untaken.as_ref()?;
        untaken.write_pending_since.or_else(|| untaken.unsent.as_ref().map(|unsent| unsent.since))
    }

    /// Returns whether the system must be asked again how many bytes it has not sent.
    pub(super) fn awaits_delivery(&self) -> bool {
        self.untaken.as_ref().is_some_and(|untaken| untaken.unsent.is_some())
    }

    fn record_written(&mut self, bytes: usize) {
        let now = Moment::now();
        let drained_by = self.drained_by.max(now) + Duration::from_millis(bytes as u64 / SLOWEST);
        self.drained_by = drained_by.min(now + Duration::from_millis(BETWEEN / SLOWEST));
        self.taken(|untaken| untaken.unsent = None);
        self.is_sent = false;
    }

    /// Ends the stream to the peer. [`Self::poll_shut`] continues if the socket does not accept the end at once.
    pub(super) fn shut(&mut self, cx: &mut Context<'_>) {
        self.shut = true;
        self.shutting = true;
        self.poll_shut(cx);
    }

    /// Continues to end the stream, and returns whether the socket has accepted the end.
    pub(super) fn poll_shut(&mut self, cx: &mut Context<'_>) -> bool {
        // An error ends the stream as well.
        if self.shutting && Pin::new(&mut self.socket).poll_shutdown(cx).is_ready() {
            self.shutting = false;
        }
        !self.shutting
    }

    /// Returns whether the peer has accepted nothing for `limit`. The socket itself is asked first.
    pub(super) fn is_stalled_for(&mut self, limit: Duration) -> bool {
        if self.stalled_since().is_none_or(|since| since.elapsed() < limit) {
            return false;
        }
        if !self.is_write_pending() {
            return !self.is_sent_by_system() && self.stalled_since().is_some_and(|since| since.elapsed() >= limit);
        }
        let unwritten = self.untaken.as_deref().map(Untaken::unwritten);
        let Some(taken) = self.socket.send_now(unwritten.unwrap_or_default()) else { return true };
        self.record_written(taken);
        let untaken = self.untaken.get_or_insert_default();
        untaken.written += taken;
        untaken.write_pending_since = Some(Moment::now());
        false
    }

    /// Returns whether everything was sent, including the end of the stream.
    pub(super) fn has_shut(&self) -> bool {
        self.shut && !self.shutting
    }

    /// Ends the stream and reads the bytes that have come: closing a socket with unread bytes resets it, and bytes
    /// being delivered to the peer are lost.
    pub(super) fn disconnect(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) {
        if !self.shut {
            self.shut(cx);
        }
        if self.stream_end == Some(StreamEnd::Read) {
            return;
        }
        for _ in 0..LAST_READS {
            if self.read(cx, scratch).is_none_or(|length| length == 0) {
                return;
            }
        }
    }

    /// Drops the bytes that wait for a peer that accepts nothing any more.
    pub(super) fn abandon(&mut self) {
        self.shut = true;
        self.unflushed = false;
        self.untaken = None;
    }

    pub(super) fn has_pending_writes(&self) -> bool {
        !self.shut && (self.has_waiting() || self.unflushed)
    }

    /// Returns whether the peer has sent a Close and ended its stream, and no bytes wait for it here. Those that the
    /// system has not sent are sent after the socket is closed, which does not reset it.
    pub(super) fn has_finished(&self) -> bool {
        self.close_received && self.stream_end == Some(StreamEnd::Read) && !self.has_pending_writes()
    }

    /// Returns whether no bytes wait for the peer, neither here nor in the system.
    pub(super) fn has_taken_everything(&mut self) -> bool {
        !self.has_pending_writes() && self.is_sent_by_system()
    }

    /// Writes the waiting bytes. It is ready when none wait any more.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // TLS reports neither a write nor a flush before its whole buffer was sent. For a slow reader that takes longer
        // than the time for which a peer may accept nothing.
        if self.is_write_pending() && self.socket.has_write_buffer() && self.socket.send_now(&[]).is_some() {
            self.taken(|untaken| untaken.write_pending_since = None);
        }
        while let Some(untaken) = self.untaken.as_mut().filter(|untaken| !untaken.unwritten().is_empty()) {
            match Pin::new(&mut self.socket).poll_write(cx, untaken.unwritten()) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => {
                    untaken.written += written;
                    untaken.write_pending_since = None;
                    self.record_written(written);
                    self.unflushed = self.socket.has_write_buffer();
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    self.record_write_pending();
                    return Poll::Pending;
                }
            }
        }
        if self.unflushed {
            if Pin::new(&mut self.socket).poll_flush(cx)?.is_pending() {
                self.record_write_pending();
                return Poll::Pending;
            }
            self.unflushed = false;
            self.is_sent = false;
        }
        self.taken(|untaken| {
            untaken.write_pending_since = None;
            // A buffer is kept no longer than there is something in it.
            (untaken.bytes, untaken.written) = (Vec::new(), 0);
        });
        Poll::Ready(Ok(()))
    }

    /// Writes as much as the socket accepts at once and keeps the rest. It may be called only when no bytes wait.
    pub(super) fn write_now(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> io::Result<()> {
        if self.shut {
            return Ok(());
        }
        let mut from = 0;
        while !self.has_waiting() && from < bytes.len() {
            match Pin::new(&mut self.socket).poll_write(cx, &bytes[from..]) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(written)) => {
                    from += written;
                    self.record_written(written);
                    self.unflushed = self.socket.has_write_buffer();
                }
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => {
                    self.record_write_pending();
                    break;
                }
            }
        }
        if from < bytes.len() {
            self.out().extend_from_slice(&bytes[from..]);
        }
        if self.unflushed && Pin::new(&mut self.socket).poll_flush(cx)?.is_ready() {
            self.unflushed = false;
            self.is_sent = false;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::Arc;

    use rcgen::generate_simple_self_signed;
    use socket2::SockRef;
    use tokio::io::AsyncReadExt as _;
    use tokio::net::{TcpListener, TcpSocket};
    use tokio_rustls::rustls::pki_types::{PrivateKeyDer, ServerName};
    use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    use super::*;

    /// Returns a TLS connection whose system buffers hold some 20 KB: the proxy's end, and the peer's.
    async fn narrow_tls() -> (Socket, impl AsyncRead + Unpin) {
        let certified = generate_simple_self_signed(vec!["localhost".to_owned()]).expect("certificate");
        let provider = Arc::new(tokio_rustls::rustls::crypto::aws_lc_rs::default_provider());
        let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(
                vec![certified.cert.der().clone()],
                PrivateKeyDer::try_from(certified.signing_key.serialize_der()).expect("key"),
            )
            .expect("server");
        let mut roots = RootCertStore::empty();
        roots.add(certified.cert.der().clone()).expect("root");
        let client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
        let connecting = TcpSocket::new_v4().expect("socket");
        connecting.set_recv_buffer_size(4 << 10).expect("size");
        SockRef::from(&connecting).set_tcp_mss(1_448).expect("segments");
        let connected = connecting.connect(listener.local_addr().expect("address")).await.expect("connects");
        let accepted = listener.accept().await.expect("accepts").0;
        SockRef::from(&accepted).set_send_buffer_size(4 << 10).expect("size");
        let name = ServerName::try_from("localhost").expect("name");
        let (ours, theirs) = tokio::join!(
            TlsAcceptor::from(Arc::new(server)).accept(accepted),
            TlsConnector::from(Arc::new(client)).connect(name, connected)
        );
        (Socket::Tls(Box::new(ours.expect("handshake").into())), theirs.expect("handshake"))
    }

    #[tokio::test]
    async fn a_peer_that_takes_a_part_of_what_tls_has_buffered_is_not_stalled() {
        let (ours, mut theirs) = narrow_tls().await;
        let mut peer = Peer::new(ours, Moment::now());
        poll_fn(|cx| {
            // All of the bytes are in the buffer of TLS or in the system.
            peer.write_now(cx, &vec![0; 60 << 10]).expect("written");
            assert!(peer.poll_flush(cx).is_pending());
            Poll::Ready(())
        })
        .await;
        let since = peer.stalled_since().expect("waits");
        let mut taken = vec![0; 24 << 10];
        let flushing = poll_fn(|cx| {
            assert!(peer.poll_flush(cx).is_pending(), "more is waiting than is read");
            Poll::<()>::Pending
        });
        tokio::select! {
            read = theirs.read_exact(&mut taken) => assert_eq!(read.expect("read"), 24 << 10),
            () = flushing => {}
        }
        assert!(peer.stalled_since().expect("waits") > since);
    }
}
